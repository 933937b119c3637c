"""The share of a micro-batch's budget that a sample takes at given pruning rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data.sizes import KeptCounts, Rates, Sizes

SUBSET = 4096  # number of samples from which means are estimated
CACHED_RATES = 256  # rates whose kept counts are cached


class DecoderFlops(NamedTuple):
    """Operations of the language model on a sample of n tokens: per_token * n + per_pair * n (n + 1) / 2."""

    per_token: float
    per_pair: float


@dataclass(frozen=True)
class SampleCost:
    """Operations of a training step by sample: a fixed part, plus the language model in each view."""

    fixed_S: np.ndarray  # vision tower and heads, over all views
    views: tuple[DecoderFlops, ...]
    savings: TowerSavings | None = None  # per view, if tokens are pruned before the tower; None: after it

    def __call__(self, samples: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Operations of samples [M] with `tokens` [views, ..., M] after pruning, in the dtype of `fixed_S`."""
        cost: np.ndarray = self.fixed_S[samples]
        for (per_token, per_pair), kept in zip(self.views, tokens, strict=True):
            cost = cost + kept * (kept * (per_pair / 2) + (per_token + per_pair / 2))
            if self.savings is not None:
                cost = cost - self.savings(samples, kept)
        return cost

    def per(self, cost: float) -> SampleCost:
        """The same, as float32 fractions of `cost`."""
        # Python floats, so that results stay float32.
        views = tuple(DecoderFlops(*(float(flops / cost) for flops in view)) for view in self.views)
        return SampleCost((self.fixed_S / cost).astype(np.float32), views, self.savings and self.savings.per(cost))


@dataclass(frozen=True)
class TowerSavings:
    """Operations that the vision tower saves if d of the `tokens_S` of a sample are pruned before it:
    d * line - d^2 * square."""

    tokens_S: np.ndarray
    line_S: np.ndarray
    square_S: np.ndarray

    def __call__(self, samples: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        dropped = self.tokens_S[samples] - tokens
        return dropped * (self.line_S[samples] - dropped * self.square_S[samples])

    def per(self, cost: float) -> TowerSavings:
        """The same, as float32 fractions of `cost`."""
        columns = (self.tokens_S, self.line_S / cost, self.square_S / cost)
        return TowerSavings(*(values.astype(np.float32) for values in columns))


@dataclass(frozen=True)
class Patches:
    """Patches that enter the vision tower for a sample: once for all views, or once per view if pruning precedes it."""

    patches_S: np.ndarray
    tokens_S: np.ndarray
    freed: int | None = None  # patches removed per pruned token; None: pruning follows the tower

    def __call__(self, samples: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Patches of samples [M] with `tokens` [views, ..., M] after pruning."""
        if self.freed is None:
            return np.broadcast_to(self.patches_S[samples], tokens[0].shape)
        return (self.patches_S[samples] - self.freed * (self.tokens_S[samples] - tokens)).sum(0)


@dataclass(frozen=True)
class Budget:
    """Limits of one micro-batch. Micro-batches are balanced by cost if it is given, otherwise by tokens."""

    tokens: int  # tokens that reach the language model after pruning, summed over views
    patches: int | None = None  # patches that enter the vision tower
    cost: float | None = None  # operations, as computed by SampleCost
    lookahead: int = 256  # samples considered for a step beyond the number it needs

    def __post_init__(self) -> None:
        for name in ("tokens", "patches", "cost", "lookahead"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"a budget of {name}={value} must be at least 1")


class BinLoads:
    """Fractions of the budget that samples take at any rates. The balanced resource is the first.

    Kept tokens are cached by video shape and rate, because both recur.
    """

    def __init__(
        self,
        sizes: Sizes,
        kept: KeptCounts,
        budget: Budget,
        cost_of: SampleCost | None,
        patches: Patches,
        *,
        typical: Rates,
    ) -> None:
        assert (cost_of is None) == (budget.cost is None)
        self.sizes, self.budget, self.patches = sizes, budget, patches
        self.cost = cost_of.per(budget.cost) if cost_of is not None and budget.cost is not None else None
        widest = int(sizes.tokens_V.max(initial=0)) + 1
        shapes, shape_V = np.unique(sizes.grids_V * widest + sizes.tokens_V, return_inverse=True)
        grids, tokens = np.divmod(shapes, widest)
        self.kept = lru_cache(CACHED_RATES)(lambda rate: np.append(kept(grids, tokens, rate), 0).astype(np.float32))
        self.fixed_S, self.count_S = sizes.fixed_S.astype(np.float32), np.diff(sizes.first_S)
        self.shape_V = np.append(shape_V, len(shapes))  # the last entry, without tokens, stands for a missing video
        self.shape_S = self.shape_V[np.where(self.count_S > 0, sizes.first_S[:-1], -1)]  # shape of the first video
        self._mean = lru_cache(CACHED_RATES)(self._rounded_mean)
        self._cached_mean = lru_cache(CACHED_RATES)(self._mean_at)  # rounded rates recur even if exact ones do not
        share_S = self._alone(typical, np.arange(len(sizes)))[0]
        self.share_S = share_S / share_S.mean()  # relative to an average sample, at typical rates

    def at(self, rates: Sequence[Rates]) -> StepLoads:
        """The loads in bins with these rates."""
        return StepLoads(self, rates, np.array([self._mean(views) for views in rates]).T)

    def _rounded_mean(self, views: Rates) -> tuple[float, ...]:
        return self._cached_mean(tuple(min(round(rate, 2), 0.99) for rate in views))

    def _mean_at(self, views: Rates) -> tuple[float, ...]:
        """[K] loads of an average sample."""
        subset = np.linspace(0, len(self.sizes) - 1, min(SUBSET, len(self.sizes))).astype(int)
        return tuple(self._alone(views, subset).mean(1, dtype=np.float64).tolist())

    def _alone(self, views: Rates, samples: np.ndarray) -> np.ndarray:
        """[K, M] loads in a single bin."""
        return StepLoads(self, [views], np.empty((0, 1)))(np.zeros(1, int), samples)


class StepLoads:
    """Fractions of the budget that samples take in the bins (micro-batches) of one step."""

    def __init__(self, loads: BinLoads, rates: Sequence[Rates], mean_KP: np.ndarray) -> None:
        self.loads, self.mean_KP = loads, mean_KP
        views = [np.concatenate([loads.kept(rate) for rate in view]) for view in zip(*rates, strict=True)]
        self.kept_VX = np.stack(views)  # by bin, and within it by video shape
        self.shapes = self.kept_VX.shape[1] // len(rates)

    @property
    def share_S(self) -> np.ndarray:
        """Load of the first resource, relative to an average sample."""
        return self.loads.share_S

    def __call__(self, bins: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """[K, ...] loads of samples [M] in the bins `bins`, broadcast: [M], or [P, 1] for each sample in each bin."""
        loads, tokens = self.loads, self._tokens(bins, samples)
        fractions: list[np.ndarray] = [tokens.sum(0) * np.float32(1 / loads.budget.tokens)]
        if loads.cost is not None:
            fractions.insert(0, loads.cost(samples, tokens))
        if loads.budget.patches is not None:
            fractions.append(loads.patches(samples, tokens) / loads.budget.patches)
        return np.stack(fractions, dtype=np.float32, casting="same_kind")

    def _tokens(self, bins: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """[views, ...] tokens that reach the language model."""
        loads, begin = self.loads, bins * self.shapes
        tokens = self.kept_VX.take(begin + loads.shape_S[samples], axis=1) + loads.fixed_S[samples]
        count_M = loads.count_S[samples]
        for nth in range(1, count_M.max(initial=0)):  # few samples have more than one video
            shape_M = loads.shape_V[np.where(count_M > nth, loads.sizes.first_S[samples] + nth, -1)]
            tokens += self.kept_VX.take(begin + shape_M, axis=1)
        return tokens
