"""Pictures of pruned videos: frames with dropped tokens greyed, above a chart of the kept tokens of each frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from scripts.pruning.keep_masks import PrunedVideo

BLUE, GREY = "#0072B2", "#BBBBBB"
COLUMNS = 6  # frames that a still picture shows
PANEL = 260  # pixels of one in the animation


def greyed(frame_HWC: np.ndarray, keep_HW: np.ndarray) -> np.ndarray:
    """The frame with its dropped tokens pale and grey."""
    height, width = frame_HWC.shape[:2]
    size = (width, height)
    kept = np.asarray(Image.fromarray(keep_HW.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)) > 0
    pale = 0.75 * 235 + 0.25 * frame_HWC.mean(-1, keepdims=True)
    return np.where(kept[..., None], frame_HWC, pale).astype(np.uint8)


def still(video: PrunedVideo, rate: float, out: Path) -> None:
    """Write a PNG of one rate: evenly spaced frames and the chart of kept tokens."""
    keep, count = video.keep[rate], len(video.frames_THWC)
    picked = np.unique(np.linspace(0, count - 1, min(COLUMNS, count)).round().astype(int))
    figure = Figure(figsize=(2.0 * len(picked), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, len(picked), height_ratios=(2.2, 1))
    for column, index in enumerate(picked):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(greyed(video.frames_THWC[index], keep[index]))
        axes.set_title(f"{video.times_T[index]:.1f} s", fontsize=10)
        axes.axis("off")
    strip(figure.add_subplot(grid[1, :]), video, rate)
    figure.suptitle(f"rate {rate:g}: {keep.mean():.0%} of {keep.size} video tokens kept ({video.scores})", fontsize=11)
    figure.savefig(out, dpi=110)


def strip(axes: Any, video: PrunedVideo, rate: float, now: int | None = None) -> None:
    """Draw the kept tokens of every temporal grid over time; `now` marks one grid."""
    kept_T = video.keep[rate].sum((1, 2))
    all_tokens = video.keep[rate][0].size
    width = 0.9 * (np.diff(video.times_T).min() if len(video.times_T) > 1 else 1.0)
    axes.bar(video.times_T, all_tokens, width=width, color=GREY, label="all tokens")
    axes.bar(video.times_T, kept_T, width=width, color=BLUE, label="kept")
    if now is not None:
        axes.axvline(video.times_T[now], color="black", linewidth=1.5)
    axes.set_xlabel("time (s)", fontsize=9)
    axes.set_ylabel("tokens\nof a grid", fontsize=9)
    axes.tick_params(labelsize=8)
    if now is None:
        axes.legend(fontsize=8, loc="upper right", ncols=2, framealpha=0.9)


def moving(video: PrunedVideo, out: Path, seconds: float = 0.5) -> None:
    """Write a GIF of all rates side by side, `seconds` per frame, with one palette to keep the file small."""
    frames = [moment(video, index) for index in range(len(video.frames_THWC))]
    palette = frames[len(frames) // 2].quantize(96)
    coded = [frame.quantize(96, palette=palette, dither=Image.Dither.NONE) for frame in frames]
    coded[0].save(out, save_all=True, append_images=coded[1:], duration=int(1000 * seconds), loop=0, optimize=True)


def moment(video: PrunedVideo, index: int) -> Image.Image:
    """One frame of the animation."""
    rates = sorted(video.keep)
    height, width = video.frames_THWC.shape[1:3]
    wide = len(rates) * PANEL / 100
    figure = Figure(figsize=(wide, PANEL / 100 * height / width + 1.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, len(rates), height_ratios=(PANEL / 100 * height / width, 0.9))
    for column, rate in enumerate(rates):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(greyed(video.frames_THWC[index], video.keep[rate][index]))
        axes.set_title(f"rate {rate:g}", fontsize=10)
        axes.axis("off")
        strip(figure.add_subplot(grid[1, column]), video, rate, index)
    figure.suptitle(f"kept video tokens ({video.scores})", fontsize=10)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
