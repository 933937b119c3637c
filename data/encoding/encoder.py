"""Preprocessing of a sample: decoding its media, the chat template, tokens, labels and patches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError

from data.collate import grids_of, joined
from data.encoding.labels import CHATML, ChatMarkers, Labeller, check_rendered
from data.encoding.patches import image_patches, seconds_per_grid, video_patches
from data.media.decode import decode
from data.media.frame_list import load_frames
from data.media.frames import FramePolicy
from data.media.images import load_image
from data.media.processor import VideoRule, normal, rule_of
from data.sample_limits import LIMITS, SampleLimits, guarded
from data.types import Clip, Encoding, FrameList, ImageRef, RowError, Sample, Turn, VideoRef


class TooLong(RowError):
    """A row has more than data.max_tokens tokens. Such a row is skipped, never truncated."""


class Encoder:
    """Turns samples into token ids, labels and patches for a vision-language model, with its Hugging Face processor.

    The parts of the processor are called one by one, because its `__call__` doubles the time and takes one size for all
    videos. Options whose defaults differ between library versions (sampling, sizes, cap per frame) are always passed.
    """

    def __init__(
        self,
        processor: Any,
        policy: FramePolicy,
        max_tokens: int | None = None,
        limits: SampleLimits = LIMITS,
        chat: ChatMarkers = CHATML,
    ) -> None:
        self.processor, self.policy, self.max_tokens, self.limits = processor, policy, max_tokens, limits
        self.markers = chat
        self.labeller = Labeller(processor.tokenizer, self._opening(), chat)
        tokenizer = processor.tokenizer
        self.filler_token: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.video_processor = rule_of(processor.video_processor, policy).processor
        self.temporal_patch: int = self.video_processor.temporal_patch_size
        self.merge: int = self.video_processor.merge_size
        self.placeholder = re.compile(
            f"(?P<video>{re.escape(processor.video_token)})|(?P<image>{re.escape(processor.image_token)})"
        )

    @cached_property
    def identity(self) -> str:
        """Hash of everything that predicted sizes depend on: processor, frame policy, limits and library versions."""
        tokenizer = self.processor.tokenizer
        ingredients = (
            self.processor.to_json_string(),
            self.processor.chat_template,
            tokenizer.chat_template,
            tokenizer.backend_tokenizer.to_str(),
            self.policy,
            self.max_tokens,
            self.limits,
            *(version(name) for name in ("transformers", "tokenizers", "av", "pillow")),
        )
        return blake2b(repr(ingredients).encode(), digest_size=16).hexdigest()

    def encode(self, sample: Sample) -> Encoding:
        """Decode, tokenize and label one sample.

        Raises MediaError or RowError if it cannot be used, TooLong if it exceeds data.max_tokens.
        """
        with guarded(sample.id, self.limits.seconds):
            return self.encode_clips(sample, *self.read(sample))

    def prompt(self, sample: Sample) -> Encoding:
        """Encode a sample for generation: up to the beginning of its last answer, without labels."""
        turns = sample.turns[:-1] if sample.turns[-1].role == "assistant" else sample.turns
        with guarded(sample.id, self.limits.seconds):
            return self.encode_clips(replace(sample, turns=turns), *self.read(sample), generate=True)

    def read(self, sample: Sample) -> tuple[list[Clip], list[np.ndarray]]:
        """Decode the videos and the images of a sample, both in prompt order.

        Raises RowError, before anything is decoded, if the text contains special tokens.
        """
        self.labeller.check(sample)
        clips: list[Clip] = []
        images: list[np.ndarray] = []
        max_bytes = self.limits.max_bytes
        for ref in sample.media:
            if isinstance(ref, VideoRef):
                clips.append(self._clip(ref, max_bytes))
                max_bytes -= clips[-1].frames_THWC.nbytes
            else:
                images.append(load_image(ref, max_bytes))
                max_bytes -= images[-1].nbytes
        return clips, images

    def _clip(self, ref: VideoRef, max_bytes: int) -> Clip:
        rule = self.video_rule(ref)
        if isinstance(ref.content, FrameList):
            return load_frames(ref, ref.content, rule.policy.fps, rule.policy.max_frames, max_bytes)
        return decode(ref, rule.sample, max_bytes)

    def video_rule(self, ref: VideoRef) -> VideoRule:
        """How a video is sampled and resized. Raises RowError if the settings of its row are invalid."""
        try:
            return rule_of(self.processor.video_processor, self.policy, ref.settings)
        except ValueError as error:
            raise RowError(f"{ref.path}: {error}") from None

    def _times(self, ref: VideoRef) -> str:
        """The kind of frame times of a video; those of a frame list are always the server's."""
        return "server" if isinstance(ref.content, FrameList) else self.policy.times

    def encode_clips(
        self, sample: Sample, clips: Sequence[Clip], images: Sequence[np.ndarray], *, generate: bool = False
    ) -> Encoding:
        """Encode a sample whose media are already decoded.

        With `generate`, the text ends in the generation prompt and no token is labelled.
        """
        refs = [ref for ref in sample.media if isinstance(ref, VideoRef)]
        videos = [
            video_patches(self.video_rule(ref).processor, clip, self.policy.times)
            for clip, ref in zip(clips, refs, strict=True)
        ]
        pictures = [image_patches(self.processor.image_processor, image) for image in images]
        text = self.expand(
            sample,
            self.chat(sample, generate=generate),
            [self.processor.replace_video_token(video, 0) for video in videos],
            [self.processor.replace_image_token(picture, 0) for picture in pictures],
        )
        ids = self.labeller.tokens(text)
        self.check_length(sample, len(ids))
        ids_N = torch.tensor(ids)
        return Encoding(
            id=sample.id,
            input_ids_N=ids_N,
            labels_N=self.labeller.labels(ids_N, [] if generate else learned_turns(sample), sample.id),
            pixel_values_videos=joined([video["pixel_values_videos"] for video in videos]),
            video_grid_thw_V3=grids_of([video["video_grid_thw"] for video in videos]),
            second_per_grid_V=torch.tensor(
                [seconds_per_grid(clip, self.temporal_patch, self._times(ref)) for clip, ref in zip(clips, refs)],
                dtype=torch.float64,
            ),
            pixel_values=joined([picture["pixel_values"] for picture in pictures]),
            image_grid_thw_I3=grids_of([picture["image_grid_thw"] for picture in pictures]),
            video_M=torch.tensor([isinstance(part, VideoRef) for part in sample.media], dtype=torch.bool),
            choices=() if generate else self.labeller.choices(sample.turns),
            video_normal=normal(self.video_processor),
            image_normal=normal(self.processor.image_processor),
        )

    def check_length(self, sample: Sample, tokens: int) -> None:
        if self.max_tokens is not None and tokens > self.max_tokens:
            raise TooLong(f"{sample.id}: {tokens} tokens exceed data.max_tokens={self.max_tokens}")

    def chat(self, sample: Sample, *, generate: bool = False) -> str:
        """Render the chat template, with one placeholder token per medium.

        With `generate`, the text ends in the generation prompt, with thinking disabled. Raises RowError if the template
        rejects the turns.
        """
        messages = [{"role": turn.role, "content": [_content(part) for part in turn.parts]} for turn in sample.turns]
        # Passed only to templates that use it: the library hands any other keyword to the processor.
        thinks = "enable_thinking" in str(self.processor.chat_template)
        options = {"enable_thinking": False} if thinks else {}
        try:
            text = self.processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generate, **options
            )
        except TemplateError as error:
            raise RowError(f"{sample.id}: the chat template rejects the row ({error}); correct its turns") from None
        is_open = not generate and sample.turns[-1].role == "assistant" and not text.endswith(self.markers.closing)
        return text + self.markers.closing if is_open else text

    def _opening(self) -> str:
        """Text that the generation prompt adds after the header of an answer, such as an empty thought."""
        return self.chat(Sample("opening", (Turn("user", ("?",)),)), generate=True).rpartition(self.markers.header)[2]

    def expand(self, sample: Sample, text: str, videos: Sequence[str], pictures: Sequence[str]) -> str:
        """Replace each placeholder in `text` by the processor's text for that medium.

        Raises RowError if the template has dropped a medium or text of the row.
        """
        replacements = {"video": iter(videos), "image": iter(pictures)}
        kinds = [match.lastgroup for match in self.placeholder.finditer(text)]
        for kind, media in (("video", videos), ("image", pictures)):
            if kinds.count(kind) != len(media):
                raise RowError(
                    f"{sample.id}: the chat template shows {kinds.count(kind)} of {len(media)} {kind}s; "
                    "use a template that shows all media"
                )
        check_rendered(sample, text)
        return self.placeholder.sub(lambda match: next(replacements[str(match.lastgroup)]), text)


def learned_turns(sample: Sample) -> list[bool]:
    """For each assistant turn, whether it is labelled."""
    return [turn.learned for turn in sample.turns if turn.role == "assistant"]


def _content(part: str | VideoRef | ImageRef) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "video" if isinstance(part, VideoRef) else "image"}
