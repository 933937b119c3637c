"""Which frames of a video are sampled. The model's own video processor decides, and servers follow the same rule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from data.media.container import VideoInfo
from data.types import VideoSettings

MAX_FPS, MAX_FRAMES = 30, 768  # upper limits of servers per request
TIMES = ("server", "real")


@dataclass(frozen=True)
class FramePolicy:
    """How many frames of a video are sampled, and to how many pixels they are resized; None: the checkpoint decides.

    The names are those of transformers and qwen-vl-utils. Pixels are counted after resizing.
    """

    fps: float = 2.0  # frames to sample per second of video
    min_frames: int = 4  # a shorter video gives all of its frames
    max_frames: int = MAX_FRAMES
    min_pixels: int | None = None  # lower limit per frame; Qwen3-VL: per video
    max_pixels: int | None = None  # upper limit per frame
    total_pixels: int | None = None  # upper limit over all frames of a video
    times: str = "server"  # timestamps in the prompt: "server" (frame index / average rate) or "real"

    def __post_init__(self) -> None:
        if not 0 < self.fps <= MAX_FPS:
            raise ValueError(f"fps={self.fps} is outside (0, {MAX_FPS}], the rates that servers sample at")
        if self.min_frames < 2:
            raise ValueError(f"min_frames={self.min_frames} must be at least 2: one temporal grid takes two frames")
        if self.max_frames < self.min_frames:
            raise ValueError(f"max_frames={self.max_frames} is below min_frames={self.min_frames}: raise it")
        if self.max_frames > MAX_FRAMES:
            raise ValueError(f"max_frames={self.max_frames} is above {MAX_FRAMES}, the most that servers sample")
        if self.times not in TIMES:
            raise ValueError(f"times={self.times} is unknown: use one of {', '.join(TIMES)}")
        for name in ("min_pixels", "max_pixels", "total_pixels"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1, or null for the checkpoint's own")
        if self.min_pixels and self.max_pixels and self.max_pixels < self.min_pixels:
            raise ValueError(f"max_pixels={self.max_pixels} is below min_pixels={self.min_pixels}: raise it")

    def with_settings(self, settings: VideoSettings) -> FramePolicy:
        """The policy for a video with settings of its own, which override this policy as in a request to a server.

        Raises ValueError, naming the key, if the result is contradictory.
        """
        own: dict[str, Any] = {name: value for name, value in vars(settings).items() if value is not None}
        if (frames := own.pop("nframes", None)) is not None:
            own |= {"min_frames": frames, "max_frames": frames}
        if "max_frames" in own:
            own.setdefault("min_frames", min(self.min_frames, own["max_frames"]))
        if "max_pixels" in own and self.min_pixels is not None:
            own.setdefault("min_pixels", min(self.min_pixels, own["max_pixels"]))
        return replace(self, **own)


class Sampler:
    """Samples frame indices by the `sample_frames` method of a video processor that a policy was written into."""

    def __init__(self, video_processor: Any) -> None:
        self.video_processor = video_processor
        self.temporal_patch: int = video_processor.temporal_patch_size

    def __call__(self, info: VideoInfo) -> np.ndarray:
        """[T] int64 frame indices in the file, ascending; empty if there are too few frames for a temporal grid.

        Frames that the header counts but the file lacks are dropped; the others keep their indices. An odd number of
        frames stays odd, because the processor repeats the last frame.
        """
        if info.frames < self.temporal_patch:
            return np.zeros(0, np.int64)
        header = SimpleNamespace(total_num_frames=info.frames, fps=info.fps)
        indices = np.asarray(self.video_processor.sample_frames(header, fps=self.video_processor.fps), dtype=np.int64)
        indices = np.unique(indices.clip(max=info.frames - 1))  # float32 steps may end one past the last frame
        indices = indices[indices < info.readable]
        return info.first + indices if len(indices) >= self.temporal_patch else indices[:0]
