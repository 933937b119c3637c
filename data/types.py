"""Data types, in the order in which a row passes through them: Sample, decoded Clip, Encoding, packed Batch.

Axis legend: N tokens, V videos, I images, T frames of a clip, H W C pixels, R patch rows of a vision tower.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Normal: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel
IGNORE = -100  # label of a token that carries no loss


class MediaError(ValueError):
    """A video or image that cannot be used; the message names the file and the reason."""


class RowError(ValueError):
    """A dataset row that cannot be used; the message names the row and the remedy."""


@dataclass(frozen=True)
class Span:
    """A byte range of a file that holds one medium, as a member of an archive."""

    file: str
    begin: int  # offset in bytes
    size: int  # bytes


@dataclass(frozen=True)
class ImageRef:
    """An image that a row names, not yet opened."""

    path: str
    content: Span | bytes | None = field(default=None, repr=False)  # None: the file at `path`


@dataclass(frozen=True)
class FrameList:
    """A video given as a list of pictures, in display order."""

    pictures: tuple[ImageRef, ...]
    times: tuple[float, ...] | None = None  # seconds at which each was taken; None: at a constant rate


@dataclass(frozen=True)
class VideoSettings:
    """Sampling and resizing settings of one video, named as in qwen-vl-utils; None: the run's frame policy decides."""

    fps: float | None = None  # frames per second to sample; for a FrameList, the rate at which it was sampled
    nframes: int | None = None  # exact number of frames to sample
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None


@dataclass(frozen=True)
class VideoRef:
    """A video that a row names, not yet opened."""

    path: str  # path of the file, or name of the medium in its archive or column
    start: float | None = None  # seconds; None: the beginning of the file
    end: float | None = None  # seconds; None: the end of the file
    content: Span | bytes | FrameList | None = field(default=None, repr=False)  # None: the file at `path`
    settings: VideoSettings | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str  # "system", "user" or "assistant"
    parts: tuple[str | VideoRef | ImageRef, ...]
    learned: bool = True  # False: an assistant turn without labels

    @property
    def is_target(self) -> bool:
        """Whether its tokens are labelled."""
        return self.role == "assistant" and self.learned


@dataclass(frozen=True)
class Sample:
    """One row of a dataset as a conversation."""

    id: str
    turns: tuple[Turn, ...]
    kind: str = ""  # kind of question; evaluation reports accuracy by kind as well
    metric: str | None = None  # name in data.answer_metrics; None: greedy decoding must produce the answer
    answers: tuple[str, ...] = ()  # accepted in addition to the assistant's

    @property
    def media(self) -> tuple[VideoRef | ImageRef, ...]:
        """All videos and images, in prompt order."""
        return tuple(part for turn in self.turns for part in turn.parts if not isinstance(part, str))

    @property
    def has_own_settings(self) -> bool:
        """True if a video is sampled or resized by settings of its row."""
        return any(isinstance(ref, VideoRef) and ref.settings is not None for ref in self.media)


@dataclass(frozen=True)
class Quarantined:
    """A sample that was skipped, with the reason as one printable line."""

    id: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", printable(self.reason))


def printable(text: str, max_length: int = 500) -> str:
    """The text on one line, with control characters escaped, and shortened in the middle to about `max_length`."""
    line = " ".join(text.split())
    if len(line) > max_length:
        line = f"{line[: max_length // 2]} ... {line[-max_length // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


@dataclass(frozen=True)
class Clip:
    """The sampled frames of one video, with their indices and timestamps."""

    frames_THWC: np.ndarray  # uint8 RGB
    times_T: np.ndarray  # float64 seconds from the first frame of the file, strictly increasing
    frame_indices_T: np.ndarray  # int64, index of each frame in the file
    fps: float  # average frame rate of the source
    frames: int  # number of frames that were sampled from: of the file, or of the requested segment
    duration: float  # of the source, in seconds


def no_grids() -> Tensor:
    """The grids of no media."""
    return torch.zeros(0, 3, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """What the model reads, on the CPU. Media are in prompt order; grids are in patches, before merging."""

    input_ids_N: Tensor  # int64
    labels_N: Tensor  # int64, IGNORE outside assistant answers; unshifted
    pixel_values_videos: Tensor | None = None  # uint8 [R, patch]
    video_grid_thw_V3: Tensor = field(default_factory=no_grids)  # int64
    second_per_grid_V: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))  # between grids
    pixel_values: Tensor | None = None  # uint8 [R, patch], images
    image_grid_thw_I3: Tensor = field(default_factory=no_grids)  # int64
    video_M: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))  # True for a video, not an image
    choices: tuple[tuple[int, ...], ...] = ()  # per learned turn: first token of each option, () if free-form
    video_normal: Normal | None = None  # of pixel_values_videos, applied on the device; None: they are normalised
    image_normal: Normal | None = None


@dataclass(frozen=True, kw_only=True)
class Encoding(ModelInputs):
    """One sample, tokenised and patched."""

    id: str


@dataclass(frozen=True, kw_only=True)
class Batch(ModelInputs):
    """Several encodings packed end to end."""

    ids: tuple[str, ...]
    segment_N: Tensor  # int64, index of the sample within the batch

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, so that copies to a GPU overlap with computation."""
        pinned: dict[str, Any] = {name: x.pin_memory() for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **pinned)
