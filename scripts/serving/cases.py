"""The prompts of check_serving: synthetic clips of all shapes, frame rates and orders that affect positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.types import Clip, ImageRef, Sample, Turn, VideoRef

SOURCE_FPS = 8.0
# Rows and columns of tokens; 64 grids of "small" with their timestamps fit a tiny checkpoint's encoder cache in vLLM.
SHAPES = {"square": (4, 4), "landscape": (3, 5), "portrait": (5, 3), "small": (4, 2), "wide": (14, 24)}


@dataclass(frozen=True)
class Video:
    shape: str = "square"
    grids: int = 6
    fps: float = 2.0


@dataclass(frozen=True)
class Picture:
    shape: str = "landscape"


Part = str | Video | Picture


@dataclass(frozen=True)
class Case:
    """A prompt, in the checkpoint's chat template if `chat` is true."""

    parts: tuple[Part, ...]
    chat: bool = True

    @property
    def videos(self) -> list[Video]:
        return [part for part in self.parts if isinstance(part, Video)]

    @property
    def pictures(self) -> list[Picture]:
        return [part for part in self.parts if isinstance(part, Picture)]

    def sample(self) -> Sample:
        """The prompt as one user turn. Its media are passed decoded, so their paths are placeholders."""
        return Sample("case", (Turn("user", tuple(_placeholder(part) for part in self.parts)),))


BEFORE = "Here is a video. Watch closely what happens, then answer with the option letter."
AFTER = " What is the color at the end?"


def _placeholder(part: Part) -> str | VideoRef | ImageRef:
    if isinstance(part, str):
        return part
    return VideoRef("clip") if isinstance(part, Video) else ImageRef("picture")


def _case(video: Video) -> Case:
    return Case((BEFORE, video, AFTER))


CASES = {
    "square": _case(Video("square")),
    "landscape": _case(Video("landscape")),
    "portrait": _case(Video("portrait")),
    "1 fps": _case(Video("landscape", fps=1.0)),
    "4 fps": _case(Video("landscape", fps=4.0, grids=9)),
    "4 grids": _case(Video("portrait", grids=4)),
    "16 grids": _case(Video("landscape", grids=16)),
    "64 grids": _case(Video("small", grids=64)),
    "no text before": Case((Video("landscape"), AFTER)),
    "no text after": Case((BEFORE, Video("landscape")), chat=False),
    "starts with the video": Case((Video("landscape"), AFTER), chat=False),
    "two videos": Case((BEFORE, Video("landscape"), " and ", Video("portrait", grids=5, fps=4.0), AFTER)),
    "image then video": Case((BEFORE, Picture(), Video("portrait"), AFTER)),
    "video then image": Case((BEFORE, Video("landscape"), Picture("portrait"), AFTER)),
}


def clip(video: Video, cell: int, seed: int) -> Clip:
    """Noise with `cell` pixels per token that changes little in some tokens and much in others, sampled evenly over
    time."""
    random = np.random.default_rng(seed)
    rows, columns = SHAPES[video.shape]
    duration = 2 * video.grids / video.fps
    frames = round(duration * SOURCE_FPS)
    indices = np.linspace(0, frames - 1, 2 * video.grids).round().astype(np.int64)
    still = random.integers(0, 256, (rows, columns, cell, cell, 3))

    def frame() -> np.ndarray:
        change = random.uniform(0, 90, (rows, columns, 1, 1, 1))
        return _tiled(np.clip(still + change * random.uniform(-1, 1, still.shape), 0, 255).astype(np.uint8))

    pictures = np.stack([frame() for _ in indices])
    return Clip(pictures, indices / SOURCE_FPS, indices, SOURCE_FPS, frames, duration)


def picture(shape: str, cell: int, seed: int) -> np.ndarray:
    """[H, W, 3] uint8 noise."""
    rows, columns = SHAPES[shape]
    return _tiled(np.random.default_rng(seed).integers(0, 256, (rows, columns, cell, cell, 3), dtype=np.uint8))


def server_metadata(clip: Clip) -> dict[str, object]:
    """The metadata of frames that a server has sampled from a file."""
    return {
        "fps": clip.fps,
        "duration": clip.duration,
        "total_num_frames": clip.frames,
        "frames_indices": clip.frame_indices_T.tolist(),
        "do_sample_frames": False,
    }


def _tiled(cells: np.ndarray) -> np.ndarray:
    """[rows, columns, cell, cell, 3] -> [H, W, 3]."""
    rows, columns, cell = cells.shape[:3]
    return np.ascontiguousarray(cells.transpose(0, 2, 1, 3, 4).reshape(rows * cell, columns * cell, 3))
