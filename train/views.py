"""At which rates, and pruned by which method, a step reads what it has decoded: functions of (seed, step), on which the
plan and the loop agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from evs import Curriculum, FrameBeta, draw
from evs.methods.base import Method, depth
from evs.rates import RateDistribution, generator_of

Rate: TypeAlias = float | Sequence[float]  # of all videos of a batch, or one a video


@dataclass(frozen=True)
class Views:
    """What a step asks of a batch: to be read at each of these rates, the lowest first."""

    rates: tuple[Rate, ...]
    method: Method | None = None  # which prunes; None: the task's own


@dataclass(frozen=True)
class StepMethods:
    """The methods of which each step draws one: every one once in as many steps as there are, in a random order.

    A step, not a micro-batch: ranks wait for each other, and ZeRO 3 asks that they call the tower equally often. All
    keep equally many tokens of a video, so that nothing which counts tokens has to know which was drawn.
    """

    methods: tuple[Method, ...]
    seed: int

    def __post_init__(self) -> None:
        first = self.methods[0]
        for other in self.methods[1:]:
            if type(other).counts is not type(first).counts:  # type: ignore[comparison-overlap]
                raise ValueError(
                    f"method.methods: {first.name} and {other.name} keep different numbers of tokens: leave one out"
                )

    def __call__(self, step: int) -> Method:
        cycle, turn = divmod(step, len(self.methods))
        order = torch.randperm(len(self.methods), generator=generator_of("methods", self.seed, cycle))
        return self.methods[order[turn]]

    @property
    def first(self) -> Method:
        """Which evaluations prune by."""
        return self.methods[0]

    @property
    def latest(self) -> Method:
        """Whose vision tower is given most, which plans and forecasts count."""
        return max(self.methods, key=lambda each: math.inf if (before := depth(each)) is None else before)


@dataclass(frozen=True)
class StepRates:
    """The rates of a global step's micro-batches by their places in it, turn by turn and rank by rank within a turn.

    However many ranks share the places, and in however many turns, the samples of a place meet the same rates. A place
    has one rate from each of as many equal shares of the distribution as are drawn for it.
    """

    distribution: RateDistribution
    places: int
    seed: int
    levels: int | None = None
    views: int = 1  # of every micro-batch
    anchor: float | None = None  # rate of one of them, always; None: all are drawn
    per_video: bool = False  # each video of a batch draws its own

    @property
    def drawn(self) -> int:
        """Views of a micro-batch whose rates are drawn."""
        return self.views - (self.anchor is not None)

    def __call__(self, step: int) -> list[tuple[float, ...]]:
        """Of each place, ascending, as plans count them: where each video draws its own, the lowest there are."""
        return [self.lowest()] * self.places if self.per_video else self._draw(self.places, step)

    def of_batch(self, step: int, place: int, grids: Sequence[int]) -> tuple[Rate, ...]:
        """At which rate, or rates of its videos, a place's batch is read in each view; its videos have so many temporal
        grids each."""
        if not self.per_video or not grids:
            views: list[Rate] = [*self(step)[place]]
        else:
            views = [list(each) for each in zip(*self._draw(len(grids), step, place))]
        if isinstance(self.distribution, FrameBeta):
            each = [[rate] * len(grids) if isinstance(rate, float) else rate for rate in views]
            views = [[*map(self.distribution.of_video, rates, grids)] for rates in each] if grids else views
        return tuple(views)

    @property
    def known(self) -> bool:
        """Whether the rates of all steps follow from the seed alone."""
        return not self.per_video and not isinstance(self.distribution, FrameBeta)

    def _draw(self, n: int, step: int, place: int | None = None) -> list[tuple[float, ...]]:
        """Of n places, or of n videos of one."""
        rates = draw(self.distribution, self.drawn * n, seed=self.seed, step=step, place=place, levels=self.levels)
        return [self._with_anchor(each) for each in rates.view(self.drawn, n).T.tolist()]

    def _with_anchor(self, rates: list[float]) -> tuple[float, ...]:
        return tuple(sorted(rates if self.anchor is None else [self.anchor, *rates]))

    def typical(self) -> list[float]:
        """A low, the median and a high rate of the distribution; fewer where they are equal."""
        quantiles = self.distribution.icdf(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
        return sorted(set(quantiles.tolist()))

    def lowest(self) -> tuple[float, ...]:
        """No place's first rate is below the first of them, no second one below the second, and so on."""
        return self._with_anchor([self._least(share) for share in range(self.drawn)])

    def _least(self, share: int) -> float:
        """Of the quantiles of one share."""
        first = share / self.drawn
        if self.levels is not None:
            first = min(first, int(first * self.levels) / max(1, self.levels - 1))
        u = torch.linspace(first, (share + 1) / self.drawn - 1e-9, 4097, dtype=torch.float64)
        stages = self.distribution.stages if isinstance(self.distribution, Curriculum) else [self.distribution]
        return min(float(stage.icdf(u).min()) for stage in stages)
