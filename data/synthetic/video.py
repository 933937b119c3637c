"""Shared by the synthetic data sets: colors that survive a codec, textures, video files and the data file."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np

from data.progress import progress_bar

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 70, 220),
    "yellow": (230, 210, 50),
    "cyan": (60, 210, 220),
    "magenta": (210, 60, 200),
}
WHITE, BLACK = (245, 245, 245), (10, 10, 10)


def write_data_set(out: Path, videos: int, write: Callable[[int], list[dict[str, Any]]], workers: int) -> Path:
    """The path of `out`/data.jsonl (LLaVA format), with its videos in `out`/videos, written by `workers` processes.

    `write` writes the video of a number and returns its rows.
    """
    (out / "videos").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        written = pool.map(write, range(videos), chunksize=8)
        rows = list(progress_bar(written, total=videos, desc=f"videos for {out.name}", unit="video"))
    data = out / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for video in rows for row in video))
    return data


def write_video(path: Path, frames_THWC: np.ndarray, fps: int, crf: int = 20) -> None:
    """An H.264 file, at a quality at which colors survive."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=fps, options={"crf": str(crf), "preset": "veryfast", "tune": "fastdecode"}
        )
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # several processes write videos at the same time
        for frame in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """[side, side, 3] float32: a coarse random field, smoothly enlarged, darker and duller than the objects."""
    coarse = rng.uniform(70, 130, (5, 5, 3)).astype(np.float32)
    position = np.linspace(0, 4 - 1e-4, side)
    low, part = position.astype(int), (position % 1).astype(np.float32)
    weight = np.zeros((side, 5), np.float32)  # linear interpolation, along either axis
    weight[np.arange(side), low], weight[np.arange(side), low + 1] = 1 - part, part
    return np.einsum("yi,xj,ijc->yxc", weight, weight, coarse, optimize=True)


def color(rng: np.random.Generator, but: str = "") -> str:
    """The name of a random color other than `but`."""
    return str(rng.choice([name for name in COLORS if name != but]))


def rgb(name: str) -> np.ndarray:
    return np.array(COLORS[name], np.float32)
