"""Kept tokens of a video at several pruning rates, by a model's scores or by pixel differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText

from data.collate import collate
from data.encoding.encoder import Encoder
from data.media.container import VideoInfo
from data.media.decode import decode
from data.types import Batch, Clip, Sample, Turn, VideoRef
from evs.families import Adapter, adapter_for
from evs.methods import method_named
from evs.methods.evs import FIRST_FRAME
from evs.policy import Policy
from evs.selection import select
from evs.types import Grid
from train.export.serving_metadata import checkpoint_policy, frames_of
from train.model import encoder_of, load_pretrained

CELL = 28  # side of a token in pixels, after resizing the frame to WIDTH
WIDTH = 448


@dataclass(frozen=True)
class PrunedVideo:
    """The first frame of each temporal grid of a video, and the kept tokens at each rate."""

    frames_THWC: np.ndarray  # uint8 RGB
    times_T: np.ndarray  # seconds
    keep: dict[float, np.ndarray]  # by rate: [T, H, W] bool
    scores: str  # where the scores come from, for titles


@dataclass(frozen=True)
class LoadedClip:
    """A checkpoint and a video as it reads it."""

    policy: Policy
    encoder: Encoder
    adapter: Adapter
    clip: Clip
    batch: Batch


def load_clip(video: Path, model: str) -> LoadedClip:
    """The checkpoint in the dtype of its file, and the video on the frames of its evs.json."""
    policy = checkpoint_policy(model)
    encoder = encoder_of(model, frames_of(policy))
    sample = Sample("video", (Turn("user", (VideoRef(str(video)), "?")),))
    clips, _ = encoder.read(sample)
    batch = collate([encoder.encode_clips(sample, clips, [], generate=True)], filler_token=0)
    network: Any = load_pretrained(AutoModelForImageTextToText, model, dtype="auto").eval()
    return LoadedClip(policy, encoder, adapter_for(network, policy.scheme), clips[0], batch)


def keep_by_features(video: Path, model: str, rates: Sequence[float]) -> PrunedVideo:
    """The tokens that the checkpoint keeps, by the method, frames and dtype of its evs.json."""
    checkpoint = load_clip(video, model)
    encoder, policy, adapter, batch = checkpoint.encoder, checkpoint.policy, checkpoint.adapter, checkpoint.batch
    clip = checkpoint.clip
    with torch.no_grad():
        (grid,) = adapter.grids(batch)
        method = method_named(policy.method, policy.scorer_dtype, policy.prune_at)
        pixels = method.needs == "pixels"
        inputs_MC = adapter.pixels(batch) if pixels else adapter.encode_media(batch, adapter.embed_prompt(batch))[1]
        keep = {rate: method.keep(inputs_MC, grid, rate).numpy() for rate in rates}
    step = encoder.temporal_patch
    name = Path(model).name
    return PrunedVideo(clip.frames_THWC[::step], clip.times_T[::step], keep, f"scores of {name}'s vision tower")


def keep_by_pixels(video: Path, rates: Sequence[float], fps: float, most: int) -> PrunedVideo:
    """Tokens kept by the mean pixel difference from the same cell one temporal grid before."""
    clip = decode(VideoRef(str(video)), partial(evenly, fps=fps, most=most))
    pairs = len(clip.frames_THWC) // 2
    grid, cells_THWC = cells(clip.frames_THWC[: 2 * pairs])
    scores_THW = pixel_scores(cells_THWC)
    keep = {rate: select(scores_THW, rate).numpy() for rate in rates}
    assert scores_THW.shape == (grid.T, grid.H, grid.W)
    return PrunedVideo(
        clip.frames_THWC[: 2 * pairs : 2], clip.times_T[: 2 * pairs : 2], keep, "pixel differences, no model"
    )


def evenly(info: VideoInfo, fps: float, most: int) -> np.ndarray:
    """Indices of an even number of frames at `fps`, at most `most`."""
    count = min(most, max(2, int(info.readable / info.fps * fps)), info.readable) // 2 * 2
    return info.first + np.linspace(0, info.readable - 1, count).round().astype(np.int64)


def cells(frames_THWC: np.ndarray) -> tuple[Grid, Tensor]:
    """The grid of tokens, and the pixels of each token as [T, H, W, C]: CELL x CELL, averaged over two frames."""
    height, width = frames_THWC.shape[1:3]
    wide = max(1, round(WIDTH / CELL))
    high = max(1, round(wide * height / width))
    size = (wide * CELL, high * CELL)
    small = [np.asarray(Image.fromarray(frame).resize(size), np.float32) for frame in frames_THWC]
    pixels = torch.from_numpy(np.stack(small)).unflatten(0, (-1, 2)).mean(1)
    split = pixels.view(len(pixels), high, CELL, wide, CELL, 3).permute(0, 1, 3, 2, 4, 5)
    return Grid(len(pixels), high, wide), split.flatten(3)


def pixel_scores(cells_THWC: Tensor) -> Tensor:
    """Scores as [T, H, W]; the first grid scores above all others."""
    change = (cells_THWC[1:] - cells_THWC[:-1]).abs().mean(-1)
    return torch.cat([torch.full_like(cells_THWC[:1, ..., 0], FIRST_FRAME + 1), change])
