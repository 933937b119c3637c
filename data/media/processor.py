"""Writes a frame policy into the configuration of a checkpoint's video processor, where servers read it.

Only options that hold for clips of any length are used, so that an export can carry them as a file.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch

from data.media.frames import FramePolicy, Sampler
from data.types import Normal, VideoSettings

MIN_FRAME_FACTOR = 1.05  # the library never bounds a frame below this factor of the smallest frame
LEVELS = {"do_rescale": False, "do_normalize": False}  # patches stay uint8 and are normalised on the device
CALL = {
    **LEVELS,
    "do_sample_frames": False,
    "do_resize": True,
    "input_data_format": "channels_first",
    "return_metadata": True,
    "return_tensors": "pt",
}


def configured(video_processor: Any, policy: FramePolicy) -> Any:
    """A copy of the video processor that follows `policy`; for what it leaves open, the checkpoint's values."""
    processor = copy.copy(video_processor)
    for name, value in configuration(video_processor, policy).items():
        setattr(processor, name, value)
    return processor


def configuration(video_processor: Any, policy: FramePolicy) -> dict[str, Any]:
    """The entries of the processor's configuration that the policy sets."""
    if hasattr(video_processor, "configuration"):
        return video_processor.configuration(policy)
    frames = {"num_frames": None, "fps": policy.fps, "min_frames": policy.min_frames, "max_frames": policy.max_frames}
    bounds = _of_video if _bounds_the_video(video_processor) else _of_frames
    return frames | bounds(video_processor, policy)


@dataclass(frozen=True)
class VideoRule:
    """How a video is sampled and resized, by the run's policy and the settings of its row."""

    processor: Any
    sample: Sampler
    policy: FramePolicy


@lru_cache(256)
def rule_of(video_processor: Any, policy: FramePolicy, settings: VideoSettings | None = None) -> VideoRule:
    """The rule for videos with these settings. Raises ValueError, naming the key, for settings no server accepts."""
    if settings is not None:
        for name in getattr(video_processor, "unsupported", ()):
            if (value := getattr(settings, name)) is not None:
                raise ValueError(
                    f"{name}={value} cannot be requested from this family's server: use fps and max_frames"
                )
        policy = policy.with_settings(settings)
    processor = configured(video_processor, policy)
    return VideoRule(processor, Sampler(processor), policy)


@lru_cache(2**16)  # takes milliseconds, and data sets repeat sizes
def frame_patches(processor: Any, frames: int, height: int, width: int) -> int:
    """Patches per frame of a clip, by the processor's own `resize` on a tensor without data."""
    resized = processor.resize(
        torch.empty((1, frames, 3, height, width), dtype=torch.uint8, device="meta"),
        size=SimpleNamespace(**{key: processor.size[key] for key in ("shortest_edge", "longest_edge")}),
        resample=processor.resample,
        factor=processor.patch_size * processor.merge_size,
        temporal_factor=processor.temporal_patch_size,
        cap_pixels_per_frame=processor.cap_pixels_per_frame,
    )
    return resized.shape[-2] * resized.shape[-1] // processor.patch_size**2


def normal(processor: Any) -> Normal | None:
    """Mean and standard deviation by which pixels in [0, 1] are normalised, independent of the processor's own scale.

    None if the processor resizes in floating point, because its patches are normalised already.
    """
    if not hasattr(processor, "rescale_factor"):
        return None
    scale = 255 * processor.rescale_factor
    mean, std = processor.image_mean, processor.image_std
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _of_frames(processor: Any, policy: FramePolicy) -> dict[str, Any]:
    """If `size` bounds a frame, the cap bounds the video: 0.9 x tokens, in pixels, x 2 frames."""
    own = processor.size
    size = {
        "shortest_edge": policy.min_pixels or own["shortest_edge"],
        "longest_edge": policy.max_pixels or own["longest_edge"],
    }
    if policy.total_pixels is None:
        return {"size": size, "cap_pixels_per_frame": False}
    tokens = policy.total_pixels / (0.9 * processor.temporal_patch_size * token_pixels(processor))
    return {"size": size, "cap_pixels_per_frame": True, "max_video_tokens": max(1, int(tokens))}


def _of_video(processor: Any, policy: FramePolicy) -> dict[str, Any]:
    """If `size` bounds the video, the library's cap bounds a frame. `min_pixels` are the video's."""
    own = processor.size
    shortest = policy.min_pixels or own["shortest_edge"]
    longest = policy.total_pixels or own["longest_edge"]
    if policy.max_pixels is None:
        return {"size": {"shortest_edge": shortest, "longest_edge": longest}, "cap_pixels_per_frame": False}
    shortest = min(shortest, int(policy.max_pixels / MIN_FRAME_FACTOR))
    return {
        "size": {"shortest_edge": shortest, "longest_edge": longest},
        "cap_pixels_per_frame": True,
        "max_video_tokens": max(1, policy.max_pixels // token_pixels(processor)),
    }


def token_pixels(processor: Any) -> int:
    """Pixels of a frame per token."""
    return (processor.patch_size * processor.merge_size) ** 2


@lru_cache(16)  # called first by Encoder in the main process: a forked data worker must not start PyTorch's threads
def _bounds_the_video(video_processor: Any) -> bool:
    """True if `size` bounds a whole video, so that frames shrink as their number grows."""
    side = 4 * video_processor.patch_size * video_processor.merge_size
    options = {**CALL, "size": {"shortest_edge": side, "longest_edge": 2 * side * side}, "cap_pixels_per_frame": False}
    grids = [video_processor(torch.zeros(n, 3, side, side, dtype=torch.uint8), **options) for n in (2, 8)]
    two, eight = (grid["video_grid_thw"][0, 1:].prod().item() for grid in grids)
    return eight < two
