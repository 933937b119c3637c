"""What travels through the data side: a row's Sample, a decoded Clip, one sample's Encoding, a packed Batch.

Axis legend: N tokens, V videos, I images, T frames of a clip, H W C pixels, R patch rows of a vision tower.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

Normal: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation by channel
IGNORE = -100  # label of a token that carries no loss


class MediaError(ValueError):
    """A video or image that cannot be used; the message names the file and the reason."""


class RowError(ValueError):
    """A dataset row that cannot be used; the message names the row and the remedy."""


@dataclass(frozen=True)
class Span:
    """A medium that lies within another file, as in an archive."""

    file: str
    begin: int  # bytes
    size: int


@dataclass(frozen=True)
class ImageRef:
    path: str
    content: Span | bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class FrameList:
    """A video that is given as pictures, in the order in which they are shown."""

    pictures: tuple[ImageRef, ...]
    times: tuple[float, ...] | None = None  # seconds at which each was taken; None = at a constant rate


@dataclass(frozen=True)
class VideoSettings:
    """What a row asks for one of its videos, by the names of qwen-vl-utils; None = as the run's frame policy says."""

    fps: float | None = None  # frames per second to sample; of a FrameList, those per second at which it was sampled
    nframes: int | None = None  # exact number of frames to sample
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None


@dataclass(frozen=True)
class VideoRef:
    path: str  # of the file; of a medium that lies elsewhere, its name there
    start: float | None = None  # seconds; None = the file's beginning
    end: float | None = None  # seconds; None = the file's end
    content: Span | bytes | FrameList | None = field(default=None, repr=False)  # None = the file at `path`
    settings: VideoSettings | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Turn:
    role: str  # "system", "user" or "assistant"
    parts: tuple[str | VideoRef | ImageRef, ...]
    learned: bool = True  # False: an assistant turn without labels

    @property
    def is_target(self) -> bool:
        """Whether its tokens are labelled."""
        return self.role == "assistant" and self.learned


@dataclass(frozen=True)
class Sample:
    id: str
    turns: tuple[Turn, ...]
    kind: str = ""  # of question, by which evaluation also counts
    metric: str | None = None  # name in data.answer_metrics; None: greedy decoding must produce the answer
    answers: tuple[str, ...] = ()  # accepted beside the assistant's

    @property
    def media(self) -> tuple[VideoRef | ImageRef, ...]:
        """All of its videos and images, in the order of the prompt."""
        return tuple(part for turn in self.turns for part in turn.parts if not isinstance(part, str))

    @property
    def has_own_settings(self) -> bool:
        """True if a video is sampled or resized by settings of its row."""
        return any(isinstance(ref, VideoRef) and ref.settings is not None for ref in self.media)


@dataclass(frozen=True)
class Quarantined:
    """A sample that was left out, and why in one printable line."""

    id: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", printable(self.reason))


def printable(text: str, most: int = 500) -> str:
    """The text as one line, with control characters escaped and the middle of a text longer than `most` left out."""
    line = " ".join(text.split())
    if len(line) > most:
        line = f"{line[: most // 2]} ... {line[-most // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


@dataclass(frozen=True)
class Clip:
    """The sampled frames of one video, their places in it, and the real times at which they were shot."""

    frames_THWC: np.ndarray  # uint8 RGB
    times_T: np.ndarray  # float64 seconds from the first frame of the file, strictly increasing
    frame_indices_T: np.ndarray  # int64, counted from the first frame of the file
    fps: float  # of the source, average
    frames: int  # that were sampled from: of the file, or of the stretch that was asked for
    duration: float  # seconds, of the source


@dataclass(frozen=True)
class Encoding:
    """One sample, tokenised and patched. Grids are in patches, before merging."""

    id: str
    input_ids_N: Tensor  # int64
    labels_N: Tensor  # int64, IGNORE outside assistant answers; unshifted
    pixel_values_videos: Tensor | None  # uint8 [R, patch]
    video_grid_thw_V3: Tensor  # int64
    second_per_grid_V: Tensor  # float64, seconds between temporal grids
    pixel_values: Tensor | None  # uint8 [R, patch], images
    image_grid_thw_I3: Tensor  # int64
    video_M: Tensor  # bool [media], in the order of the prompt: whether it is a video
    choices: tuple[tuple[int, ...], ...]  # per assistant turn: first token of each offered option, () if free-form
    video_normal: Normal | None = None  # that videos are to be normalised with
    image_normal: Normal | None = None


@dataclass(frozen=True)
class Batch:
    """Several encodings packed end to end, on the CPU. Media are in prompt order."""

    ids: tuple[str, ...]
    input_ids_N: Tensor
    labels_N: Tensor
    segment_N: Tensor  # int64, index of the sample within the batch
    pixel_values_videos: Tensor | None
    video_grid_thw_V3: Tensor
    second_per_grid_V: Tensor
    pixel_values: Tensor | None
    image_grid_thw_I3: Tensor
    video_M: Tensor
    choices: tuple[tuple[int, ...], ...]
    video_normal: Normal | None = None  # that videos are to be normalised with
    image_normal: Normal | None = None

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from where copies to a GPU run beside its work."""
        pinned: dict[str, Any] = {name: x.pin_memory() for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **pinned)
