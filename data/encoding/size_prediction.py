"""Predicts the size of an encoded sample (tokens, patches, frames) from media headers, without decoding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch

from data.encoding.encoder import Encoder, learned_turns
from data.media.decode import sampled_indices
from data.media.frame_list import list_indices, with_rate
from data.media.processor import frame_patches
from data.sample_limits import check_decoded_size, guarded
from data.sizes import SampleSize
from data.types import IGNORE, FrameList, ImageRef, MediaError, RowError, Sample, VideoRef

Ref: TypeAlias = VideoRef | ImageRef
Headers: TypeAlias = Mapping[Ref, Any]  # VideoInfo, (height, width) or MediaError of each medium


@dataclass(frozen=True)
class MediaSize:
    """Size of one medium, predicted from its header."""

    text: str  # the processor's text for it, with one token per grid
    grids: int  # temporal grids; 1 for an image
    tokens: int  # of one grid
    frames: int  # sampled; 0 for an image
    pixels: int  # when decoded, over all frames


@dataclass(frozen=True)
class _ShortPrompt:
    """The prompt of a sample with one token per grid, so that tokenizing it is cheap."""

    text: str
    videos: tuple[MediaSize, ...]
    images: tuple[MediaSize, ...]


def predict_size(encoder: Encoder, sample: Sample, headers: Headers) -> SampleSize:
    """The size that `encoder.encode(sample)` will have.

    Exact, except for videos of variable frame rate under `times="real"`, whose timestamps are unknown before decoding.
    Raises MediaError, RowError or TooLong if the sample cannot be used.
    """
    prompt = _short_prompt(encoder, sample, {ref: _media_size(encoder, ref, headers[ref]) for ref in sample.media})
    return _size(encoder, sample, prompt, encoder.labeller.tokens(prompt.text))


def predict_sizes(
    encoder: Encoder, samples: Sequence[Sample], headers: Headers
) -> list[SampleSize | MediaError | RowError]:
    """`predict_size` of each sample, or the error that makes it unusable.

    All samples are tokenized in one call, and a medium that several samples share is measured once.
    """
    prompts = _short_prompts(encoder, samples, headers)
    ids = iter(encoder.labeller.batch([prompt.text for prompt in prompts if isinstance(prompt, _ShortPrompt)]))
    sizes: list[SampleSize | MediaError | RowError] = []
    for sample, prompt in zip(samples, prompts):
        if not isinstance(prompt, _ShortPrompt):
            sizes.append(prompt)
            continue
        try:
            with guarded(sample.id):
                sizes.append(_size(encoder, sample, prompt, next(ids)))
        except (MediaError, RowError) as error:
            sizes.append(error)
    return sizes


def _short_prompts(
    encoder: Encoder, samples: Sequence[Sample], headers: Headers
) -> list[_ShortPrompt | MediaError | RowError]:
    prompts: list[_ShortPrompt | MediaError | RowError] = []
    sizes: dict[Ref, MediaSize] = {}
    for sample in samples:
        try:
            with guarded(sample.id):
                sizes |= {ref: _media_size(encoder, ref, headers[ref]) for ref in sample.media if ref not in sizes}
                prompts.append(_short_prompt(encoder, sample, sizes))
        except (MediaError, RowError) as error:
            prompts.append(error)
    return prompts


def _media_size(encoder: Encoder, ref: Ref, header: Any) -> MediaSize:
    if isinstance(header, MediaError):
        raise header
    return _image_size(encoder, *header) if isinstance(ref, ImageRef) else video_size(encoder, ref, header)


def _image_size(encoder: Encoder, height: int, width: int) -> MediaSize:
    one_token = {"image_grid_thw": torch.tensor([[1, encoder.merge, encoder.merge]])}
    patches = encoder.processor.image_processor.get_number_of_image_patches(height, width, {})
    text = encoder.processor.replace_image_token(one_token, 0)
    return MediaSize(text, 1, patches // encoder.merge**2, 0, math.prod((height, width)))


def video_size(encoder: Encoder, ref: VideoRef, header: Any) -> MediaSize:
    """The size of a video, from its header (a VideoInfo). Raises MediaError or RowError if it cannot be used."""
    rule = encoder.video_rule(ref)
    if isinstance(ref.content, FrameList):
        header = with_rate(header, ref.content, rule.policy.fps)
        indices_T = list_indices(ref, ref.content, rule.policy.fps, rule.policy.max_frames)
    else:
        indices_T = sampled_indices(ref, header, rule.sample)
    frames = len(indices_T)
    grids = -(-frames // encoder.temporal_patch)
    video = {
        "video_grid_thw": torch.tensor([[grids, encoder.merge, encoder.merge]]),
        "video_metadata": [SimpleNamespace(fps=header.fps, frames_indices=indices_T.tolist())],
    }
    patches = frame_patches(rule.processor, frames, header.height, header.width)
    text = encoder.processor.replace_video_token(video, 0)
    return MediaSize(text, grids, patches // encoder.merge**2, frames, frames * header.height * header.width)


def _short_prompt(encoder: Encoder, sample: Sample, sizes: Mapping[Ref, MediaSize]) -> _ShortPrompt:
    """Raises RowError if the text cannot be used, MediaError if the media together exceed data.sample_gib."""
    encoder.labeller.check(sample)
    check_decoded_size(sample.id, sum(sizes[ref].pixels for ref in sample.media), encoder.limits.max_bytes)
    videos = tuple(sizes[ref] for ref in sample.media if isinstance(ref, VideoRef))
    images = tuple(sizes[ref] for ref in sample.media if isinstance(ref, ImageRef))
    chat = encoder.chat(sample)
    text = encoder.expand(sample, chat, [video.text for video in videos], [image.text for image in images])
    return _ShortPrompt(text, videos, images)


def _size(encoder: Encoder, sample: Sample, prompt: _ShortPrompt, ids: Sequence[int]) -> SampleSize:
    """The size of a sample from the token ids of its short prompt."""
    media = (*prompt.videos, *prompt.images)
    visual = sum(medium.grids * medium.tokens for medium in media)
    text = len(ids) - sum(medium.grids for medium in media)
    encoder.check_length(sample, text + visual)
    patches_per_token = encoder.merge**2
    labels_N = encoder.labeller.labels(torch.tensor(ids), learned_turns(sample), sample.id)
    return SampleSize(
        text + sum(image.tokens for image in prompt.images),
        tuple((video.grids, video.tokens) for video in prompt.videos),
        patches=visual * patches_per_token,
        frames=max((video.frames for video in prompt.videos), default=0),
        targets=int((labels_N != IGNORE).sum()),
        pairs=sum(medium.grids * (medium.tokens * patches_per_token) ** 2 for medium in media),
    )
