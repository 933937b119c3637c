"""Sample + Clips -> Encoding, through the Hugging Face processor that is passed in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError

from data.batching.sizes import SampleSize
from data.collate import grids_of, joined
from data.encoding.labels import CHATML, ChatMarkers, Labeller, check_rendered
from data.media.decode import decode, places
from data.media.frame_list import load_frames, places_of, timed
from data.media.frames import FramePolicy
from data.media.images import load_image
from data.media.processor import CALL, LEVELS, VideoRule, frame_patches, normal, rule_of
from data.sample_limits import LIMITS, SampleLimits, check_room, guarded
from data.types import IGNORE, Clip, Encoding, FrameList, ImageRef, MediaError, RowError, Sample, Turn, VideoRef


class TooLong(RowError):
    """A row of more tokens than fit; it is left out whole, never cut."""


@dataclass(frozen=True)
class _Sketch:
    """What a medium's header says of it: its text with one token a grid, its grids (an image is one), their tokens."""

    text: str
    grids: int
    tokens: int
    frames: int
    pixels: int  # decoded


@dataclass(frozen=True)
class _Outline:
    """A sample's text with one token for each grid of its media."""

    text: str
    videos: tuple[_Sketch, ...]
    images: tuple[_Sketch, ...]


class Encoder:
    """Samples -> token ids, labels and patches of a vision-language model.

    The processor's parts are called one by one: its `__call__` costs as much again and takes one size for all videos.
    What its versions differ in (sampling, sizes, the cap per frame) is passed, never left to its defaults.
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
        """Changes when the costs of samples may: with the processor, the frames, or the libraries that read them."""
        tokenizer = self.processor.tokenizer
        made_of = (
            self.processor.to_json_string(),
            self.processor.chat_template,
            tokenizer.chat_template,
            tokenizer.backend_tokenizer.to_str(),
            self.policy,
            self.max_tokens,
            self.limits,
            *(version(name) for name in ("transformers", "tokenizers", "av", "pillow")),
        )
        return blake2b(repr(made_of).encode(), digest_size=16).hexdigest()

    def encode(self, sample: Sample) -> Encoding:
        """The sample with its answers labelled. MediaError or RowError if it cannot be used, TooLong if it is."""
        with guarded(sample.id, self.limits.seconds):
            return self.encode_clips(sample, *self.read(sample))

    def prompt(self, sample: Sample) -> Encoding:
        """The sample up to where its last answer begins, for generation; no token is labelled."""
        asked = sample.turns[:-1] if sample.turns[-1].role == "assistant" else sample.turns
        with guarded(sample.id, self.limits.seconds):
            return self.encode_clips(replace(sample, turns=asked), *self.read(sample), generate=True)

    def read(self, sample: Sample) -> tuple[list[Clip], list[np.ndarray]]:
        """The decoded videos and images, each in the order of the prompt. The text is checked first."""
        self.labeller.check(sample)
        clips: list[Clip] = []
        images: list[np.ndarray] = []
        room = self.limits.room
        for ref in sample.media:
            if isinstance(ref, VideoRef):
                clips.append(self._clip(ref, room))
                room -= clips[-1].frames_THWC.nbytes
            else:
                images.append(load_image(ref, room))
                room -= images[-1].nbytes
        return clips, images

    def _clip(self, ref: VideoRef, room: int) -> Clip:
        rule = self._rule(ref)
        if isinstance(ref.content, FrameList):
            return load_frames(ref, ref.content, rule.policy.fps, rule.policy.max_frames, room)
        return decode(ref, rule.sample, room)

    def _rule(self, ref: VideoRef) -> VideoRule:
        """How a video is sampled and resized. RowError if its row asks for what cannot be had."""
        try:
            return rule_of(self.processor.video_processor, self.policy, ref.settings)
        except ValueError as error:
            raise RowError(f"{ref.path}: {error}") from None

    def encode_clips(
        self, sample: Sample, clips: Sequence[Clip], images: Sequence[np.ndarray], *, generate: bool = False
    ) -> Encoding:
        """The sample with media that are already decoded; with `generate`, open for an answer and without labels."""
        refs = [ref for ref in sample.media if isinstance(ref, VideoRef)]
        videos = [self._video(clip, self._rule(ref)) for clip, ref in zip(clips, refs, strict=True)]
        pictures = [self._image(image) for image in images]
        text = self._expand(
            sample,
            self.chat(sample, generate=generate),
            [self.processor.replace_video_token(video, 0) for video in videos],
            [self.processor.replace_image_token(picture, 0) for picture in pictures],
        )
        ids = self.labeller.tokens(text)
        self._check_length(sample, len(ids))
        ids_N = torch.tensor(ids)
        return Encoding(
            id=sample.id,
            input_ids_N=ids_N,
            labels_N=self.labeller.labels(ids_N, [] if generate else _learned(sample), sample.id),
            pixel_values_videos=joined([video["pixel_values_videos"] for video in videos]),
            video_grid_thw_V3=grids_of([video["video_grid_thw"] for video in videos]),
            second_per_grid_V=torch.tensor(
                [self._second_per_grid(clip, ref) for clip, ref in zip(clips, refs)], dtype=torch.float64
            ),
            pixel_values=joined([picture["pixel_values"] for picture in pictures]),
            image_grid_thw_I3=grids_of([picture["image_grid_thw"] for picture in pictures]),
            video_M=torch.tensor([isinstance(part, VideoRef) for part in sample.media], dtype=torch.bool),
            choices=() if generate else self.labeller.choices(sample.turns),
            video_normal=normal(self.video_processor),
            image_normal=normal(self.processor.image_processor),
        )

    def cost(self, sample: Sample, headers: Mapping[VideoRef | ImageRef, Any]) -> SampleSize:
        """What `encode` will give, from the VideoInfo or (height, width) of every medium; nothing is decoded.

        Exact, but that real times of a video of variable rate are not known here. TooLong as `encode`.
        """
        outline = self._outline(sample, {ref: self._sketch(ref, headers[ref]) for ref in sample.media})
        return self._size(sample, outline, self.labeller.tokens(outline.text))

    def costs(
        self, samples: Sequence[Sample], headers: Mapping[VideoRef | ImageRef, Any]
    ) -> list[SampleSize | MediaError | RowError]:
        """`cost` of each sample, or why it cannot be used; tokenised in one call, media that recur looked at once."""
        found: list[Any] = []
        sketches: dict[VideoRef | ImageRef, _Sketch] = {}
        for sample in samples:
            try:
                with guarded(sample.id):
                    sketches |= {ref: self._sketch(ref, headers[ref]) for ref in sample.media if ref not in sketches}
                    found.append(self._outline(sample, sketches))
            except (MediaError, RowError) as error:
                found.append(error)
        ids = iter(self.labeller.batch([each.text for each in found if isinstance(each, _Outline)]))
        for place, (sample, outline) in enumerate(zip(samples, found)):
            if isinstance(outline, _Outline):
                text = next(ids)
                try:
                    with guarded(sample.id):
                        found[place] = self._size(sample, outline, text)
                except (MediaError, RowError) as error:
                    found[place] = error
        return found

    def _sketch(self, ref: VideoRef | ImageRef, header: Any) -> _Sketch:
        """A medium by its header. MediaError where it cannot be used."""
        if isinstance(header, MediaError):
            raise header
        if isinstance(ref, ImageRef):
            picture = {"image_grid_thw": torch.tensor([[1, self.merge, self.merge]])}
            return _Sketch(
                self.processor.replace_image_token(picture, 0), 1, self._image_tokens(*header), 0, math.prod(header)
            )
        rule = self._rule(ref)
        if isinstance(ref.content, FrameList):
            header = timed(header, ref.content, rule.policy.fps)
            places_T = places_of(ref, ref.content, rule.policy.fps, rule.policy.max_frames)
        else:
            places_T = places(ref, header, rule.sample)
        grids = -(-len(places_T) // self.temporal_patch)
        metadata = SimpleNamespace(fps=header.fps, frames_indices=places_T.tolist())
        video = {"video_grid_thw": torch.tensor([[grids, self.merge, self.merge]]), "video_metadata": [metadata]}
        patches = frame_patches(rule.processor, len(places_T), header.height, header.width)
        pixels = len(places_T) * header.height * header.width
        text = self.processor.replace_video_token(video, 0)
        return _Sketch(text, grids, patches // self.merge**2, len(places_T), pixels)

    def _outline(self, sample: Sample, sketches: Mapping[VideoRef | ImageRef, _Sketch]) -> _Outline:
        """RowError where the text cannot be used, MediaError where the media are too large together."""
        self.labeller.check(sample)
        check_room(sample.id, sum(sketches[ref].pixels for ref in sample.media), self.limits.room)
        videos = [sketches[ref] for ref in sample.media if isinstance(ref, VideoRef)]
        images = [sketches[ref] for ref in sample.media if isinstance(ref, ImageRef)]
        text = self._expand(sample, self.chat(sample), [each.text for each in videos], [each.text for each in images])
        return _Outline(text, tuple(videos), tuple(images))

    def _size(self, sample: Sample, outline: _Outline, ids: Sequence[int]) -> SampleSize:
        """With the token ids of the outline's text, in which every grid has one token."""
        media = [(each.grids, each.tokens) for each in (*outline.videos, *outline.images)]
        visual = sum(t * each for t, each in media)
        text = len(ids) - sum(t for t, _ in media)
        self._check_length(sample, text + visual)
        cell = self.merge**2
        return SampleSize(
            text + sum(each.tokens for each in outline.images),
            tuple(media[: len(outline.videos)]),
            patches=visual * cell,
            frames=max((each.frames for each in outline.videos), default=0),
            targets=int((self.labeller.labels(torch.tensor(ids), _learned(sample), sample.id) != IGNORE).sum()),
            pairs=sum(t * (each * cell) ** 2 for t, each in media),
            pixels=sum(each.pixels for each in (*outline.videos, *outline.images)),
        )

    def _image_tokens(self, height: int, width: int) -> int:
        return self.processor.image_processor.get_number_of_image_patches(height, width, {}) // self.merge**2

    def _check_length(self, sample: Sample, tokens: int) -> None:
        if self.max_tokens is not None and tokens > self.max_tokens:
            raise TooLong(f"{sample.id}: {tokens} tokens are more than data.max_tokens={self.max_tokens}")

    def chat(self, sample: Sample, *, generate: bool = False) -> str:
        """The chat template's text, one placeholder token for each medium. RowError if it cannot show all turns.

        With `generate` it ends in the generation prompt, which asks a thinking model to answer at once.
        """
        messages = [{"role": turn.role, "content": [_content(part) for part in turn.parts]} for turn in sample.turns]
        thinks = "enable_thinking" in str(self.processor.chat_template)  # others would take the word for a processor's
        options = {"enable_thinking": False} if thinks else {}
        try:
            text = self.processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generate, **options
            )
        except TemplateError as error:
            raise RowError(f"{sample.id}: the chat template refuses the row ({error}); correct its turns") from None
        is_open = not generate and sample.turns[-1].role == "assistant" and not text.endswith(self.markers.closing)
        return text + self.markers.closing if is_open else text

    def _opening(self) -> str:
        """What the generation prompt writes after the header of an answer."""
        return self.chat(Sample("opening", (Turn("user", ("?",)),)), generate=True).rpartition(self.markers.header)[2]

    def _expand(self, sample: Sample, text: str, videos: Sequence[str], pictures: Sequence[str]) -> str:
        """`text` with each placeholder replaced by what the processor writes for its medium."""
        runs = {"video": iter(videos), "image": iter(pictures)}
        found = [match.lastgroup for match in self.placeholder.finditer(text)]
        for kind, media in (("video", videos), ("image", pictures)):
            if found.count(kind) != len(media):
                raise RowError(
                    f"{sample.id}: the chat template shows {found.count(kind)} of {len(media)} {kind}s; "
                    "use a template that shows all media"
                )
        check_rendered(sample, text)
        return self.placeholder.sub(lambda match: next(runs[str(match.lastgroup)]), text)

    def _video(self, clip: Clip, rule: VideoRule) -> Any:
        """pixel_values_videos [R, patch], video_grid_thw [1, 3] and the metadata that timestamps are made of."""
        metadata = {"total_num_frames": clip.frames, "duration": clip.duration}
        if self.policy.times == "server":
            metadata |= {"fps": clip.fps, "frames_indices": clip.places_T.tolist()}
        else:  # an index is a time: the processor's timestamps are index / fps
            metadata |= {"fps": 1.0, "frames_indices": clip.times_T.tolist()}
        return rule.processor(
            torch.from_numpy(clip.frames_THWC).permute(0, 3, 1, 2),
            video_metadata=[metadata],
            size=_edges(rule.processor.size),
            cap_pixels_per_frame=rule.processor.cap_pixels_per_frame,
            **CALL,
        )

    def _image(self, image: np.ndarray) -> Any:
        """pixel_values [R, patch] and image_grid_thw [1, 3]."""
        return self.processor.image_processor(
            torch.from_numpy(image).permute(2, 0, 1),
            size=_edges(self.processor.image_processor.size),
            do_resize=True,
            **LEVELS,
            input_data_format="channels_first",
            return_tensors="pt",
        )

    def _second_per_grid(self, clip: Clip, ref: VideoRef) -> float:
        """Seconds from one temporal grid to the next.

        The server's: the sampled part of the source's rate. The real one: the stretch that the frames stand for, up to
        the end of the last one, shared among them.
        """
        if self.policy.times == "server" or isinstance(ref.content, FrameList):
            return self.temporal_patch / (len(clip.places_T) / clip.frames * clip.fps)
        stretch = clip.times_T[-1] - clip.times_T[0] + 1 / clip.fps
        return float(self.temporal_patch * stretch / len(clip.times_T))


def _learned(sample: Sample) -> list[bool]:
    """Whether each assistant turn is labelled."""
    return [turn.learned for turn in sample.turns if turn.role == "assistant"]


def _content(part: str | VideoRef | ImageRef) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "video" if isinstance(part, VideoRef) else "image"}


def _edges(size: Any) -> dict[str, int]:
    return {"shortest_edge": size["shortest_edge"], "longest_edge": size["longest_edge"]}
