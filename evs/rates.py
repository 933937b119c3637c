"""Rate distributions as inverse CDFs, and the one function that draws from them.

Rates come from `(seed, step)` alone: every rank draws the same ones, a resumed run draws what the interrupted one
would have, and the kept count of a batch is known before the batch is built.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from evs.selection import check_rate


class RateDistribution:
    """A distribution of pruning rates, given by the inverse of its cumulative distribution function."""

    per_grid: ClassVar[bool] = False  # True if the rate of a video depends on its number of temporal grids

    def icdf(self, u: Tensor) -> Tensor:
        """Rates in [0, 1) at the quantiles u in [0, 1)."""
        raise NotImplementedError

    def at(self, step: int) -> RateDistribution:
        """The distribution of one step."""
        return self

    def rate_for(self, rate: float, grids: int) -> float:
        """The rate of a video of `grids` temporal grids for which `icdf` gave `rate`."""
        return rate

    def minimum(self, low: float, high: float) -> float:
        """The lowest rate that any step can draw at the quantiles [low, high)."""
        u = torch.linspace(low, high - 1e-9, 4097, dtype=torch.float64)
        return float(self.icdf(u).min())


@dataclass(frozen=True)
class Constant(RateDistribution):
    """A single rate. `Constant(0)` trains without pruning, as a control."""

    rate: float

    def __post_init__(self) -> None:
        check_rate(self.rate)

    def icdf(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.rate)


@dataclass(frozen=True)
class Uniform(RateDistribution):
    """Rates from `low` to `high`, equally likely."""

    low: float = 0.0
    high: float = 0.9

    def __post_init__(self) -> None:
        if check_rate(self.low) > check_rate(self.high):
            raise ValueError(f"uniform rates need low <= high, got low={self.low} high={self.high}: swap them")

    def icdf(self, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True)
class Choice(RateDistribution):
    """One of `rates`, with probabilities proportional to `weights` (equal without)."""

    rates: Sequence[float]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for rate in self.rates:
            check_rate(rate)
        _check_weights(self.weights, len(self.rates), "rates")

    def icdf(self, u: Tensor) -> Tensor:
        edges = _edges(self.weights, len(self.rates))
        return torch.tensor(self.rates, dtype=u.dtype)[torch.bucketize(u, edges[1:-1], right=True)]


@dataclass(frozen=True)
class Beta(RateDistribution):
    """A Beta distribution scaled to [low, high], by its mode and concentration (alpha + beta, more than 2).

    The paper draws from a Beta. Stated by its mode it stays unimodal whatever the mode; alpha = 1 + m (k - 2) and
    beta = 1 + (1 - m)(k - 2) with m the mode as a fraction of [low, high].
    """

    mode: float
    concentration: float = 6.0
    low: float = 0.0
    high: float = 0.95

    def __post_init__(self) -> None:
        if not check_rate(self.low) <= check_rate(self.mode) <= check_rate(self.high) or self.low == self.high:
            raise ValueError(
                f"beta rates need low <= mode <= high, got {self.low}, {self.mode}, {self.high}: move the mode inside"
            )
        if self.concentration <= 2:
            raise ValueError(
                f"beta concentration {self.concentration} must be above 2: raise it, or use rate=uniform for a flat one"
            )

    def icdf(self, u: Tensor) -> Tensor:
        mode = (self.mode - self.low) / (self.high - self.low)
        alpha, beta = 1 + mode * (self.concentration - 2), 1 + (1 - mode) * (self.concentration - 2)
        # Both exponents are >= 0, so the density is bounded and its cumulative sum inverts by interpolation.
        x = torch.linspace(0, 1, 8193, dtype=torch.float64)
        density = x.pow(alpha - 1) * (1 - x).pow(beta - 1)
        cdf = torch.cat([x.new_zeros(1), torch.cumsum((density[1:] + density[:-1]) / 2, 0)])
        quantile = _interpolate(u.double(), cdf / cdf[-1], x)
        return (self.low + (self.high - self.low) * quantile).to(u.dtype)


@dataclass(frozen=True)
class FrameBeta(RateDistribution):
    """A Beta distribution over the removable part of each video, which is all but one of its temporal grids.

    `icdf` and `mode` are fractions of that part; `rate_for` converts them to the rate of a video.
    """

    per_grid: ClassVar[bool] = True
    mode: float = 0.75
    concentration: float = 6.0

    def __post_init__(self) -> None:
        self._shares()

    def icdf(self, u: Tensor) -> Tensor:
        return self._shares().icdf(u)

    def rate_for(self, rate: float, grids: int) -> float:
        return rate * (grids - 1) / grids  # at most all but one grid

    def _shares(self) -> Beta:
        return Beta(self.mode, self.concentration, 0.0, 1 - 2**-20)


@dataclass(frozen=True)
class Mixture(RateDistribution):
    """One of several distributions, with probabilities proportional to `weights` (equal without).

    Its `icdf` gives each component an interval of u as wide as its weight, and the component's own inverse CDF within
    it: the samples are the mixture's, though the map is not monotone.
    """

    components: Sequence[RateDistribution]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        _check_weights(self.weights, len(self.components), "components")
        _check_parts(self.components)

    def icdf(self, u: Tensor) -> Tensor:
        edges = _edges(self.weights, len(self.components))
        index = torch.bucketize(u, edges[1:-1], right=True)
        inner = ((u - edges[index]) / (edges[index + 1] - edges[index])).clamp(0, 1 - 1e-12)
        rates = torch.stack([component.icdf(inner) for component in self.components])
        return rates.gather(0, index[None]).squeeze(0)


@dataclass(frozen=True)
class Curriculum(RateDistribution):
    """A schedule of distributions: `stages[i]` applies from step `steps[i]`; the first step is 0.

    If `smooth`, every quantile is interpolated linearly from one stage to the next, for example for a uniform
    distribution whose upper end moves. `icdf` is that of the mixture of all stages with equal weights.
    """

    stages: Sequence[RateDistribution]
    steps: Sequence[int] | None = None
    smooth: bool = True

    def __post_init__(self) -> None:
        _check_weights(None, len(self.stages), "stages")
        _check_parts(self.stages)
        steps = list(self.steps or ())
        if len(steps) != len(self.stages) or steps[0] != 0 or sorted({*steps}) != steps:
            raise ValueError(
                f"curriculum steps {steps} do not fit {len(self.stages)} stages: give the step at which each one "
                "starts, rising from 0"
            )

    def at(self, step: int) -> RateDistribution:
        assert self.steps is not None
        i = bisect_right(self.steps, step) - 1
        if not self.smooth or i + 1 == len(self.stages):
            return self.stages[i]
        share = (step - self.steps[i]) / (self.steps[i + 1] - self.steps[i])
        return _Between(self.stages[i], self.stages[i + 1], share)

    def minimum(self, low: float, high: float) -> float:
        return min(stage.minimum(low, high) for stage in self.stages)

    def icdf(self, u: Tensor) -> Tensor:
        return Mixture(self.stages).icdf(u)


@dataclass(frozen=True)
class _Between(RateDistribution):
    """The linear interpolation of the quantiles of two distributions."""

    begin: RateDistribution
    end: RateDistribution
    share: float

    def icdf(self, u: Tensor) -> Tensor:
        return (1 - self.share) * self.begin.icdf(u) + self.share * self.end.icdf(u)


def draw(
    dist: RateDistribution,
    n: int,
    *,
    seed: int,
    step: int,
    micro_batch: int | None = None,
    levels: int | None = None,
) -> Tensor:
    """[n] float64 rates on the CPU of a step, or of one micro-batch of it. They depend on the arguments alone.

    The draws are stratified: one quantile in each n-th of [0, 1), ascending cyclically from a random one, so that the
    micro-batches of an optimizer step cover the distribution, and ranks draw neighbouring rates in an accumulation
    step and wait little for each other. With `levels`, that many quantiles are ever drawn, including the lowest and
    the highest, so that kept counts recur.
    """
    generator = generator_of("rates", seed, step, *(() if micro_batch is None else (micro_batch,)))
    u = torch.rand(n, dtype=torch.float64, generator=generator)
    first = torch.randint(n, (1,), generator=generator)
    u = ((torch.arange(n) + first) % n + u) / n
    if levels is not None:
        u = ((u * levels).floor() / max(1, levels - 1)).clamp_max(1 - 2**-50)
    rates = dist.at(step).icdf(u)
    for rate in rates.tolist():
        check_rate(rate)
    return rates


def generator_of(*key: object) -> torch.Generator:
    """A new generator on the CPU, seeded by `key`."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _check_weights(weights: Sequence[float] | None, n: int, what: str) -> None:
    if n == 0:
        raise ValueError(f"no {what} to choose from: give at least one")
    if weights is not None and (len(weights) != n or min(weights) <= 0 or not math.isfinite(sum(weights))):
        raise ValueError(f"weights {list(weights)} do not fit {n} {what}: give {n} positive numbers")


def _check_parts(parts: Sequence[RateDistribution]) -> None:
    for part in parts:
        if isinstance(part, FrameBeta | Curriculum):
            raise ValueError(f"{type(part).__name__} cannot be a part of another distribution: use it as rate= alone")


def _edges(weights: Sequence[float] | None, n: int) -> Tensor:
    w = torch.tensor([1.0] * n if weights is None else list(weights), dtype=torch.float64)
    return torch.cat([w.new_zeros(1), torch.cumsum(w, 0) / w.sum()])


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear interpolation through the points (xs, ys), xs non-decreasing."""
    i = torch.searchsorted(xs, x, right=True).clamp(1, len(xs) - 1)
    width = (xs[i] - xs[i - 1]).clamp_min(torch.finfo(xs.dtype).tiny)
    return ys[i - 1] + (ys[i] - ys[i - 1]) * ((x - xs[i - 1]) / width).clamp(0, 1)
