"""At which rates a step reads what it has decoded: functions of (seed, step), on which the plan and the loop agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from evs import Curriculum, draw
from evs.rates import RateDistribution

Rate: TypeAlias = float | Sequence[float]  # of all videos of a batch, or one a video


@dataclass(frozen=True)
class Views:
    """What a step asks of a batch: to be read at each of these rates, the lowest first."""

    rates: tuple[Rate, ...]


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

    @property
    def drawn(self) -> int:
        """Views of a micro-batch whose rates are drawn."""
        return self.views - (self.anchor is not None)

    def __call__(self, step: int) -> list[tuple[float, ...]]:
        """Of each place, ascending."""
        n = self.drawn * self.places
        rates = draw(self.distribution, n, seed=self.seed, step=step, levels=self.levels)
        return [self._with_anchor(each) for each in rates.view(self.drawn, self.places).T.tolist()]

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
