"""Which frames of a video to take: what the family's own video processor says, which servers port."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from data.media.container import VideoInfo
from data.types import VideoSettings

MOST_FPS, MOST_FRAMES = 30, 768  # the most that servers allow a request, whatever their settings
TIMES = ("server", "real")


@dataclass(frozen=True)
class FramePolicy:
    """How many frames of a video are taken and how many pixels they may cost; None = as the checkpoint says.

    The names are the field's own (transformers, qwen-vl-utils). Pixels are counted after resizing.
    """

    fps: float = 2.0  # frames wanted per second of video
    min_frames: int = 4  # of a longer video; a shorter one gives what it has
    max_frames: int = MOST_FRAMES
    min_pixels: int | None = None  # of one frame; Qwen3-VL: of one video
    max_pixels: int | None = None  # of one frame
    total_pixels: int | None = None  # of all frames of one video together
    times: str = "server"  # frame times that the model reads: index / average rate as servers do, or the real ones

    def __post_init__(self) -> None:
        if not 0 < self.fps <= MOST_FPS:
            raise ValueError(f"fps={self.fps} is outside (0, {MOST_FPS}], the rates that servers sample at")
        if self.min_frames < 2:
            raise ValueError(f"min_frames={self.min_frames} must be at least 2: one temporal grid takes two frames")
        if self.max_frames < self.min_frames:
            raise ValueError(f"max_frames={self.max_frames} is below min_frames={self.min_frames}: raise it")
        if self.max_frames > MOST_FRAMES:
            raise ValueError(f"max_frames={self.max_frames} is above {MOST_FRAMES}, the most that servers sample")
        if self.times not in TIMES:
            raise ValueError(f"times={self.times} is unknown: use one of {', '.join(TIMES)}")
        for name in ("min_pixels", "max_pixels", "total_pixels"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1, or null for the checkpoint's own")
        if self.min_pixels and self.max_pixels and self.max_pixels < self.min_pixels:
            raise ValueError(f"max_pixels={self.max_pixels} is below min_pixels={self.min_pixels}: raise it")

    def with_settings(self, settings: VideoSettings) -> FramePolicy:
        """The policy of a video whose row has settings of its own. ValueError, naming the key, if they contradict it.

        As in a request to a server, the row's limits win over this policy's where both cannot hold.
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
    """The places of a video's frames, by the `sample_frames` of a video processor that a policy is written into."""

    def __init__(self, video_processor: Any) -> None:
        self.rule = video_processor
        self.temporal_patch: int = video_processor.temporal_patch_size

    def __call__(self, info: VideoInfo) -> np.ndarray:
        """[T] int64 places in the file, in showing order; empty where there are too few frames for a temporal grid.

        Frames that the header counts but the file lacks drop out, their neighbours keep their places. An odd number
        stays odd: the processor repeats the last frame.
        """
        if info.frames < self.temporal_patch:
            return np.zeros(0, np.int64)
        header = SimpleNamespace(total_num_frames=info.frames, fps=info.fps)
        places = np.asarray(self.rule.sample_frames(header, fps=self.rule.fps), dtype=np.int64)
        places = np.unique(places.clip(max=info.frames - 1))  # float32 steps may end one past the last frame
        places = places[places < info.readable]
        return info.first + places if len(places) >= self.temporal_patch else places[:0]
