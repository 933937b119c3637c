"""How a Hugging Face video processor samples and resizes, next to what a server does for a policy."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import torch

from evs.policy import Policy

SAMPLING = ("fps", "min_frames", "max_frames")


def frame_fields(processor: Any) -> dict[str, Any]:
    """The fields of a Policy that say how the processor samples frames; those that it leaves open are absent.

    Sizes are absent: a server reads them in the processor's own configuration.
    """
    video = processor.video_processor
    fields: dict[str, Any] = {"fps": float(video.fps)} if getattr(video, "fps", None) else {}
    for name in ("min_frames", "max_frames"):
        if getattr(video, name, None) is not None:
            fields[name] = int(getattr(video, name))
    if seconds := getattr(video, "max_duration", None):
        fields["max_frames"] = int(seconds * fields["fps"])
    if (frames := _fixed_number(video)) is not None:
        fields |= {"min_frames": frames, "max_frames": frames}
    return fields


def check_frames(processor: Any, policy: Policy | None = None) -> list[str]:
    """One sentence for every way in which the processor's frames differ from those that a server gives the model.

    `policy` is that of the checkpoint (`evs.policy.load_policy`); without one, the server's defaults hold. The list is
    empty if the frames are the same.
    """
    policy, video = policy or Policy(), processor.video_processor
    served = f"fps={policy.fps:g}, min_frames={policy.min_frames}, max_frames={policy.max_frames}"
    differences = []
    if not getattr(video, "do_sample_frames", None):
        differences.append(
            f"The processor samples no frames itself (do_sample_frames=False), and the server samples by {served}: set "
            "processor.video_processor.do_sample_frames = True, or give it the same frames."
        )
    if (frames := _fixed_number(video)) is not None:
        differences.append(
            f"The processor takes num_frames={frames} of every video, and the server samples by {served}: set "
            "processor.video_processor.num_frames = None."
        )
        return differences + _sizes(video, policy)
    own = frame_fields(processor)
    for name in SAMPLING:
        if name in own and own[name] != getattr(policy, name):
            differences.append(_difference(name, own[name], getattr(policy, name)))
    return differences + _sizes(video, policy)


def _difference(name: str, own: Any, served: Any) -> str:
    return f"The processor has {name}={own}, and the server uses {served}: set it to the same value on both sides."


def _fixed_number(video: Any) -> int | None:
    """The number of frames that is taken of every video; None if it depends on the length of the video."""
    read = "num_frames" in inspect.signature(video.sample_frames).parameters
    return getattr(video, "num_frames", None) if read else None


def _sizes(video: Any, policy: Policy) -> list[str]:
    """The differences in the limits of pixels that the policy sets."""
    limits = {name: getattr(policy, name) for name in ("min_pixels", "max_pixels", "total_pixels")}
    if not any(limits.values()):
        return []
    if not {"shortest_edge", "longest_edge"} <= dict(getattr(video, "size", None) or {}).keys():
        return [f"The processor does not limit pixels by size, and the policy does: {limits}."]
    own = _limits(video)
    if limits["max_pixels"] and _bounds_the_video(video):  # an export lowers the least size below this limit
        limits["min_pixels"] = limits["min_pixels"] and min(limits["min_pixels"], int(limits["max_pixels"] / 1.05))
    token = (video.patch_size * video.merge_size) ** 2 * video.temporal_patch_size
    return [
        _difference(name, own[name], limit)
        for name, limit in limits.items()
        if limit and (own[name] is None or abs(own[name] - limit) >= token)
    ]


def _limits(video: Any) -> dict[str, int | None]:
    """The processor's limits by the names of a Policy."""
    token, capped = (video.patch_size * video.merge_size) ** 2, getattr(video, "cap_pixels_per_frame", None)
    shortest, longest = video.size["shortest_edge"], video.size["longest_edge"]
    if _bounds_the_video(video):
        cap = video.max_video_tokens * token if capped else None
        return {"min_pixels": shortest, "max_pixels": cap, "total_pixels": longest}
    cap = int(video.max_video_tokens * token * 0.9) * video.temporal_patch_size if capped else None
    return {"min_pixels": shortest, "max_pixels": longest, "total_pixels": cap}


def _bounds_the_video(video: Any) -> bool:
    """True if `size` limits all frames of a video together: more frames are then smaller."""
    side = 4 * video.patch_size * video.merge_size
    two, eight = (
        video.resize(
            torch.empty((1, frames, 3, side, side), dtype=torch.uint8, device="meta"),
            size=SimpleNamespace(shortest_edge=side, longest_edge=2 * side * side),
            resample=video.resample,
            factor=video.patch_size * video.merge_size,
            temporal_factor=video.temporal_patch_size,
            cap_pixels_per_frame=False,
        ).shape[-2:]
        for frames in (2, 8)
    )
    return eight[0] * eight[1] < two[0] * two[1]
