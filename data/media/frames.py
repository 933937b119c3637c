"""Which frames of a video to take: pure functions of its duration, its rate and a policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FramePolicy:
    """How many frames of a video are taken and how many pixels they may cost; None = as the checkpoint says.

    The names are the field's own (qwen-vl-utils, transformers). Pixels are counted after resizing.
    """

    fps: float = 2.0  # frames wanted per second of video
    min_frames: int = 4  # of a longer video; a shorter one gives what it has
    max_frames: int = 768
    min_pixels: int | None = None  # of one frame
    max_pixels: int | None = None  # of one frame
    total_pixels: int | None = None  # of all frames of one video together

    def __post_init__(self) -> None:
        if not self.fps > 0:
            raise ValueError(f"fps={self.fps} must be above 0: give the frames wanted per second of video")
        if self.min_frames < 2:
            raise ValueError(f"min_frames={self.min_frames} must be at least 2: one temporal grid takes two frames")
        if self.max_frames < self.min_frames:
            raise ValueError(f"max_frames={self.max_frames} is below min_frames={self.min_frames}: raise it")
        for name in ("min_pixels", "max_pixels", "total_pixels"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1, or null for the checkpoint's own")
        if self.min_pixels and self.max_pixels and self.max_pixels < self.min_pixels:
            raise ValueError(f"max_pixels={self.max_pixels} is below min_pixels={self.min_pixels}: raise it")


def frame_count(available: int, seconds: float, policy: FramePolicy, temporal_patch: int = 2) -> int:
    """Frames to take out of `available` in `seconds`: a multiple of `temporal_patch`, 0 if there are too few.

    The rule of qwen-vl-utils' `smart_nframes`: seconds * fps, held within the limits, rounded down.
    """
    fewest = -(-policy.min_frames // temporal_patch) * temporal_patch
    most = policy.max_frames // temporal_patch * temporal_patch
    wanted = min(max(seconds * policy.fps, fewest), most, available)
    return int(wanted + 1e-6) // temporal_patch * temporal_patch


def frame_times(duration: float, source_fps: float, policy: FramePolicy, temporal_patch: int = 2) -> np.ndarray:
    """Wanted times [T] in seconds from the start, on the source's own frame raster, first and last included.

    Empty when the video has fewer frames than one temporal grid takes.
    """
    available = max(1, round(duration * source_fps))
    count = frame_count(available, available / source_fps, policy, temporal_patch)
    return np.linspace(0, available - 1, count).round() / source_fps
