"""Mean and standard deviation of normalised pixels: methods score uint8 levels, and a model does not know them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from evs.families.mrope.fast_tower import levels_of, normalised

Normal: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel
CLIP: Normal = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF: Normal = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
TOLERANCE = {torch.float32: 0.01, torch.float16: 0.2}  # of 255: how far rounding moves a level; bfloat16 merges levels


def processor_normal(processor: Any) -> Normal:
    """With which a processor normalises frames of the value range [0, 1]."""
    video = processor.video_processor
    scale = 255 * video.rescale_factor
    mean, std = ([value / scale for value in values] for values in (video.image_mean, video.image_std))
    return tuple(mean), tuple(std)


def normal_of(rows_RP: Tensor, candidates: Sequence[Normal] = (CLIP, HALF)) -> Normal:
    """The candidate that takes the pixels back to whole levels.

    Raises ValueError if there is none: then the pixels were not resized in uint8, or normalised otherwise.
    """
    name = str(rows_RP.dtype).removeprefix("torch.")
    if rows_RP.dtype not in TOLERANCE:
        raise ValueError(
            f"pixel_values_videos are {name}, which merges levels of uint8: pass them in float32, or in uint8 with "
            "do_rescale=False and do_normalize=False"
        )
    distance = {normal: _distance(rows_RP, normal) for normal in candidates}
    best = min(distance, key=lambda normal: distance[normal])
    if distance[best] > TOLERANCE[rows_RP.dtype]:
        raise ValueError(
            "pixel_values_videos are not normalised uint8 levels, which the method scores: give enable_pruning the "
            "processor, or pass uint8 with do_rescale=False and do_normalize=False"
        )
    return best


def _distance(rows_RP: Tensor, normal: Normal) -> float:
    """How far the pixels are from the nearest levels at most, of 255."""
    std_C = torch.tensor(normal[1], device=rows_RP.device)[:, None]
    error_RP = normalised(levels_of(rows_RP, normal), normal) - rows_RP.float()
    return float(255 * (error_RP.unflatten(1, (len(std_C), -1)).abs() * std_C).max())
