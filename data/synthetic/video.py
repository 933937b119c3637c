"""What every synthetic video is made of: colors that survive a codec, textures, and a file to hold them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 70, 220),
    "yellow": (230, 210, 50),
    "cyan": (60, 210, 220),
    "magenta": (210, 60, 200),
}
WHITE, BLACK = (245, 245, 245), (10, 10, 10)


def write_video(path: Path, frames_THWC: np.ndarray, fps: int, crf: int = 20) -> None:
    """An H.264 file, at a quality at which colors survive."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=fps, options={"crf": str(crf), "preset": "veryfast", "tune": "fastdecode"}
        )
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # the videos are shared out between processes
        for frame in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """[side, side, 3] float32: a coarse random field, smoothly enlarged; dark and dull beside the objects."""
    coarse = rng.uniform(70, 130, (5, 5, 3)).astype(np.float32)
    at = np.linspace(0, 4 - 1e-4, side)
    low, part = at.astype(int), (at % 1).astype(np.float32)
    weight = np.zeros((side, 5), np.float32)  # linear interpolation, along either axis
    weight[np.arange(side), low], weight[np.arange(side), low + 1] = 1 - part, part
    return np.einsum("yi,xj,ijc->yxc", weight, weight, coarse, optimize=True)


def color(rng: np.random.Generator, but: str = "") -> str:
    return str(rng.choice([name for name in COLORS if name != but]))


def rgb(name: str) -> np.ndarray:
    return np.array(COLORS[name], np.float32)
