"""Recording what vLLM's loader and vision tower receive for a video file. Runs in vLLM's Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch


def messages(case: dict[str, Any]) -> list[dict[str, Any]]:
    """One user turn in the format of the chat API."""
    video = {"type": "video_url", "video_url": {"url": case["url"]}}
    return [{"role": "user", "content": [video, {"type": "text", "text": case["question"]}]}]


@contextmanager
def record_loader() -> Iterator[list[dict[str, Any]]]:
    """A list to which the metadata of every video that vLLM's loader reads are appended."""
    from vllm.multimodal.media.video import VideoMediaIO

    loads, stock = [], VideoMediaIO.load_bytes

    def load_bytes(self: Any, data: bytes) -> Any:
        loaded = stock(self, data)
        loads.append(loaded.media[1])
        return loaded

    VideoMediaIO.load_bytes = load_bytes
    try:
        yield loads
    finally:
        VideoMediaIO.load_bytes = stock


def watch_tower(model: Any) -> None:
    """Record patches and grids of every video before the vision tower, which may receive only a part of them."""
    model.tower_calls = calls = []
    if hasattr(model, "visual"):
        process = model._process_video_input

        def recorded(video: Any) -> Any:
            calls.append((video["pixel_values_videos"].cpu().numpy(), video["video_grid_thw"].tolist()))
            return process(video)

        model._process_video_input = recorded
        model.unwatch = partial(delattr, model, "_process_video_input")
    else:

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            (frames, *_) = [*args, *kwargs.values()]
            rows, grids = patches_of(frames, model.patch_size, model.video_temporal_patch_size)
            calls.append((rows.cpu().numpy(), grids))

        model.unwatch = model.vision_model.register_forward_pre_hook(hook, with_kwargs=True).remove


def patches_of(frames: Any, side: int, step: int) -> tuple[Any, list[list[int]]]:
    """[frames, 3, H, W], for a tower that takes frames instead of patches -> (rows of patches as in training,
    grids)."""
    frames = torch.cat([frames, frames[-1:].repeat(-len(frames) % step, 1, 1, 1)]).float()
    t, h, w = len(frames) // step, frames.shape[2] // side, frames.shape[3] // side
    rows = frames.reshape(t, step * 3, h, side, w, side).permute(0, 2, 4, 1, 3, 5)
    return rows.reshape(t * h * w, -1), [[t, h, w]]


def unwatch_tower(model: Any) -> list[tuple[np.ndarray, list[list[int]]]]:
    model.unwatch()
    return model.tower_calls


def seen(
    loaded: dict[str, Any], calls: list[tuple[np.ndarray, list[list[int]]]], case: dict[str, Any], media: Any
) -> dict[str, Any]:
    """Frame indices, rate, count and grids of one clip, and the largest difference of its pixels from those of
    training, in levels of 255."""
    rows, grids = calls[0]
    theirs, ours = to_bytes(rows, **case["normal"]), media[case["pixels"]]
    gap = int(np.abs(theirs.astype(np.int16) - ours).max()) if theirs.shape == ours.shape else 255
    return {
        "indices": [int(index) for index in loaded["frames_indices"]],
        "fps": float(loaded["fps"]),
        "frames": int(loaded["total_num_frames"]),
        "grids": [[int(side) for side in grid] for grid in grids],
        "pixels": gap,
    }


def to_bytes(rows_RP: np.ndarray, mean: list[float], std: list[float]) -> np.ndarray:
    """[R, patch] uint8 of normalised patches; uint8 patches are returned as they are."""
    if rows_RP.dtype == np.uint8:
        return rows_RP
    channels_RCP = rows_RP.astype(np.float32).reshape(len(rows_RP), 3, -1)
    levels = 255 * (channels_RCP * np.array(std)[:, None] + np.array(mean)[:, None])
    return levels.round().clip(0, 255).astype(np.uint8).reshape(rows_RP.shape)
