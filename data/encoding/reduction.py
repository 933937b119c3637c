"""Reduces a video to fewer or smaller frames, such that it takes no more tokens than a budget.

Evaluations compare pruning with such videos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from data.encoding.encoder import Encoder
from data.encoding.size_prediction import video_size
from data.media.container import VideoInfo
from data.media.processor import token_pixels
from data.types import FrameList, MediaError, RowError, VideoRef, VideoSettings

SLACK = (1.0, 1.1, 1.2, 1.3)  # families round sides down, so that a frame may stay well below its limit


class OutOfReach(MediaError):
    """A video that cannot be reduced to its budget; the message says which limit it meets."""


@dataclass(frozen=True)
class Reduced:
    """A video with settings that reduce it, and its number of tokens."""

    ref: VideoRef
    grids: int  # temporal grids
    tokens: int  # of all grids


@dataclass(frozen=True)
class Reduction:
    """Reduces one video by the family's own sampling and resizing."""

    encoder: Encoder
    ref: VideoRef
    header: VideoInfo

    def frames(self, budget: int) -> Reduced:
        """Fewer frames of the same size."""
        whole = self.whole
        per_grid = whole.tokens // whole.grids
        return self._fitting(budget, min(whole.grids, budget // per_grid), per_grid)

    def pixels(self, budget: int) -> Reduced:
        """As many frames, but smaller ones."""
        return self._fitting(budget, self.whole.grids, budget // self.whole.grids)

    def even(self, budget: int) -> Reduced:
        """Fewer and smaller frames, each by about the root of the reduction: the split with most tokens near it."""
        whole = self.whole
        root = sqrt(budget / whole.tokens) * whole.grids
        most = max(1, min(whole.grids - 1, round(1.15 * root)))
        splits = range(min(most, max(1, round(0.85 * root))), most + 1)
        reduced, reasons = [], []
        for grids in splits:
            try:
                reduced.append(self._fitting(budget, grids, min(budget // grids, whole.tokens // whole.grids - 1)))
            except OutOfReach as error:
                reasons.append(error)
        if not reduced:
            raise reasons[-1]
        return max(reduced, key=lambda one: (one.tokens, -abs(one.grids - root)))

    @property
    def whole(self) -> Reduced:
        """The video as it is."""
        return self._measured(self.ref)

    def _fitting(self, budget: int, grids: int, per_grid: int) -> Reduced:
        """The fullest candidate within the budget, with at most this many grids of at most this many tokens."""
        self._check(grids * self.encoder.temporal_patch)
        reduced = [one for one in self._candidates(grids, per_grid) if one.tokens <= min(budget, grids * per_grid)]
        if not reduced:
            raise OutOfReach("below the smallest frame")
        return max(reduced, key=lambda one: one.tokens)

    def _candidates(self, grids: int, per_grid: int) -> Iterator[Reduced]:
        """The video with the number of frames alone, then with limits per frame, then with limits for the whole video.

        Which of these limits a frame depends on the model family.
        """
        own, frames = self.ref.settings or VideoSettings(), grids * self.encoder.temporal_patch
        pixels = max(1, per_grid) * token_pixels(self.encoder.video_processor)
        lower = {"min_pixels": own.min_pixels or self.encoder.policy.min_pixels}
        bounds = [round(pixels * slack) for slack in SLACK]
        limits: list[dict[str, int | None]] = [{"max_pixels": bound} for bound in bounds]
        limits += [{"total_pixels": frames * bound} for bound in bounds]
        for limit in ({}, *(lower | limit for limit in limits)):
            try:
                yield self._measured(self._with_frames(frames, replace(own, **limit)))
            except RowError:
                continue  # the family's server takes no such limit, or it is below min_pixels

    def _with_frames(self, frames: int, settings: VideoSettings) -> VideoRef:
        content = self.ref.content
        if isinstance(content, FrameList):
            return replace(self.ref, settings=settings, content=self._evenly(content, frames))
        count = "max_frames" if settings.nframes is None else "nframes"
        return replace(self.ref, settings=replace(settings, **{count: frames}))

    def _evenly(self, listed: FrameList, frames: int) -> FrameList:
        """At most this many pictures, at even distances, each at the time that it had."""
        count, rate = len(listed.pictures), self.encoder.video_rule(self.ref).policy.fps
        if frames >= count:
            return listed
        chosen = np.linspace(0, count - 1, frames).round().astype(int).tolist()
        times = listed.times or [index / rate for index in range(count)]
        return FrameList(tuple(listed.pictures[i] for i in chosen), tuple(times[i] for i in chosen))

    def _measured(self, ref: VideoRef) -> Reduced:
        size = video_size(self.encoder, ref, self.header)
        return Reduced(ref, size.grids, size.grids * size.tokens)

    def _check(self, frames: int) -> None:
        policy = self.encoder.video_rule(self.ref).policy
        if self.ref.settings is not None and self.ref.settings.nframes is not None:
            policy = self.encoder.policy
        if frames < policy.min_frames:
            raise OutOfReach(f"fewer than min_frames={policy.min_frames}")


REDUCTIONS: dict[str, Callable[[Reduction, int], Reduced]] = {
    "frames": Reduction.frames,
    "pixels": Reduction.pixels,
    "even": Reduction.even,
}
