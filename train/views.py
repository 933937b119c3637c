"""The pruning rates and the pruning method of every step, as functions of the seed and the step.

The plan, which fills micro-batches to a budget, and the training loop call the same functions and so agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from evs import draw
from evs.methods.base import Method, depth
from evs.rates import RateDistribution, generator_of

Rate: TypeAlias = float | Sequence[float]  # one rate for all videos of a batch, or one per video


@dataclass(frozen=True)
class StepMethods:
    """Draws the pruning method of each step: in every cycle of `len(methods)` steps each method once, in random order.

    All micro-batches of a step share one method, because ZeRO 3 requires that all ranks call the vision tower equally
    often. All methods must keep the same number of tokens, so that plans do not depend on the draw.
    """

    methods: tuple[Method, ...]
    seed: int

    def __post_init__(self) -> None:
        first = self.methods[0]
        for method in self.methods[1:]:
            if type(method).counts is not type(first).counts:  # type: ignore[comparison-overlap]
                raise ValueError(
                    f"method.methods: {first.name} and {method.name} keep different numbers of tokens: remove one"
                )

    def __call__(self, step: int) -> Method:
        cycle, turn = divmod(step, len(self.methods))
        order = torch.randperm(len(self.methods), generator=generator_of("methods", self.seed, cycle))
        return self.methods[order[turn]]

    @property
    def first(self) -> Method:
        """The method that evaluations use."""
        return self.methods[0]

    @property
    def latest(self) -> Method:
        """The method that prunes latest in the vision tower. It needs the most memory: plans and forecasts count it."""
        return max(self.methods, key=lambda method: math.inf if (block := depth(method)) is None else block)


@dataclass(frozen=True)
class StepRates:
    """Draws the rates of a global step's micro-batches, in the order of `micro_batch_index` (train.loop).

    The rates of a micro-batch depend on its index only, so runs on different numbers of ranks draw the same ones. For k
    drawn views, the distribution is divided into k shares of equal probability, and each share gives one rate.
    """

    distribution: RateDistribution
    micro_batches: int  # of a global step, over all ranks
    seed: int
    levels: int | None = None  # number of distinct rates; None draws any rate
    views: int = 1  # of every micro-batch
    anchor: float | None = None  # fixed rate of one view; None draws all
    per_video: bool = False  # draw one rate per video instead of one per micro-batch

    @property
    def drawn(self) -> int:
        """Number of views of a micro-batch whose rates are drawn."""
        return self.views - (self.anchor is not None)

    def __call__(self, step: int) -> list[tuple[float, ...]]:
        """The rates of every micro-batch of a global step, ascending over its views.

        With `per_video`, these are the lowest rates that any video can draw, which plans count with.
        """
        return [self.lowest()] * self.micro_batches if self.per_video else self._draw(self.micro_batches, step)

    def of_batch(self, step: int, index: int, grids_V: Sequence[int]) -> tuple[Rate, ...]:
        """The rate of micro-batch `index` in each view: one for all videos, or a list with one per video.

        `grids_V` holds the number of temporal grids of each video.
        """
        if not self.per_video or not grids_V:
            views: list[Rate] = [*self(step)[index]]
        else:
            views = [list(rates_V) for rates_V in zip(*self._draw(len(grids_V), step, index))]
        if self.distribution.per_grid and grids_V:
            drawn = [[view] * len(grids_V) if isinstance(view, float) else view for view in views]
            views = [[*map(self.distribution.rate_for, rates_V, grids_V)] for rates_V in drawn]
        return tuple(views)

    @property
    def replayable(self) -> bool:
        """True if the rates depend on the seed and the step only, so that they can be drawn again without the data."""
        return not self.per_video and not self.distribution.per_grid

    def _draw(self, n: int, step: int, index: int | None = None) -> list[tuple[float, ...]]:
        """The rates of n micro-batches, or with an `index` those of the n videos of one micro-batch."""
        rates = draw(
            self.distribution, self.drawn * n, seed=self.seed, step=step, micro_batch=index, levels=self.levels
        )
        return [self._with_anchor(drawn) for drawn in rates.view(self.drawn, n).T.tolist()]

    def _with_anchor(self, rates: list[float]) -> tuple[float, ...]:
        return tuple(sorted(rates if self.anchor is None else [self.anchor, *rates]))

    def typical(self) -> list[float]:
        """The 5 %, 50 % and 95 % quantiles of the distribution, ascending and without duplicates."""
        quantiles = self.distribution.icdf(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
        return sorted(set(quantiles.tolist()))

    def lowest(self) -> tuple[float, ...]:
        """The lowest rate that each view can draw, ascending."""
        return self._with_anchor([self._lowest_of(share) for share in range(self.drawn)])

    def _lowest_of(self, share: int) -> float:
        """The lowest rate of one share of the distribution."""
        first = share / self.drawn
        if self.levels is not None:
            first = min(first, int(first * self.levels) / max(1, self.levels - 1))
        return self.distribution.minimum(first, (share + 1) / self.drawn)
