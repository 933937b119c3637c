"""Patches, grids and frame times of decoded media, by a model's own video and image processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from data.media.processor import CALL, LEVELS
from data.types import Clip


def video_patches(video_processor: Any, clip: Clip, times: str) -> Any:
    """pixel_values_videos [R, patch], video_grid_thw [1, 3] and the metadata from which timestamps are rendered.

    `times` is "server" (frame index / average rate) or "real".
    """
    metadata = {"total_num_frames": clip.frames, "duration": clip.duration}
    if times == "server":
        metadata |= {"fps": clip.fps, "frames_indices": clip.frame_indices_T.tolist()}
    else:  # the processor computes timestamps as index / fps, so seconds serve as indices at 1 fps
        metadata |= {"fps": 1.0, "frames_indices": clip.times_T.tolist()}
    return video_processor(
        torch.from_numpy(clip.frames_THWC).permute(0, 3, 1, 2),
        video_metadata=[metadata],
        size=_edges(video_processor.size),
        cap_pixels_per_frame=video_processor.cap_pixels_per_frame,
        **CALL,
    )


def image_patches(image_processor: Any, image_HWC: np.ndarray) -> Any:
    """pixel_values [R, patch] and image_grid_thw [1, 3]."""
    return image_processor(
        torch.from_numpy(image_HWC).permute(2, 0, 1),
        size=_edges(image_processor.size),
        do_resize=True,
        **LEVELS,
        input_data_format="channels_first",
        return_tensors="pt",
    )


def seconds_per_grid(clip: Clip, temporal_patch: int, times: str) -> float:
    """Seconds from one temporal grid to the next.

    With "server" times it follows from the average rate and the share of frames sampled, as servers compute it. With
    "real" times, the interval from the first frame to the end of the last one is divided evenly.
    """
    if times == "server":
        return temporal_patch / (len(clip.frame_indices_T) / clip.frames * clip.fps)
    interval = clip.times_T[-1] - clip.times_T[0] + 1 / clip.fps
    return float(temporal_patch * interval / len(clip.times_T))


def _edges(size: Any) -> dict[str, int]:
    return {"shortest_edge": size["shortest_edge"], "longest_edge": size["longest_edge"]}
