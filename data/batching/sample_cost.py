"""What samples take of a micro-batch's budget at any rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data.batching.sizes import KeptCounts, Sizes, Views

TYPICAL = 4096  # samples whose mean stands for all
RECURRING = 256  # rates whose counts are kept


class DecoderFlops(NamedTuple):
    """Operations of the language model on n tokens of a sample: per_token * n + per_pair * n (n + 1) / 2."""

    per_token: float
    per_pair: float


@dataclass(frozen=True)
class SampleCost:
    """Operations of a training step by sample: fixed_S, and in each view those of reading what is left of it."""

    fixed_S: np.ndarray  # of the tower and the heads, in all views
    views: tuple[DecoderFlops, ...]
    savings: TowerSavings | None = None  # per view, if tokens are dropped before the tower; None: after it

    def __call__(self, samples: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Of samples [M] that have [views, ..., M] tokens left, in the dtype of the prices."""
        cost: np.ndarray = self.fixed_S[samples]
        for (per_token, per_pair), left in zip(self.views, tokens, strict=True):
            cost = cost + left * (left * (per_pair / 2) + (per_token + per_pair / 2))
            if self.savings is not None:
                cost = cost - self.savings(samples, left)
        return cost

    def per(self, cost: float) -> SampleCost:
        """The same in fractions of `cost`, in single precision."""
        views = tuple(
            DecoderFlops(float(per_token / cost), float(per_pair / cost)) for per_token, per_pair in self.views
        )  # Python floats: no float64 array
        return SampleCost((self.fixed_S / cost).astype(np.float32), views, self.savings and self.savings.per(cost))


@dataclass(frozen=True)
class TowerSavings:
    """Operations that a vision tower is spared where d of a sample's `tokens_S` are dropped before it: d line - d^2
    square."""

    tokens_S: np.ndarray
    line_S: np.ndarray
    square_S: np.ndarray

    def __call__(self, samples: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        dropped = self.tokens_S[samples] - tokens
        return dropped * (self.line_S[samples] - dropped * self.square_S[samples])

    def per(self, cost: float) -> TowerSavings:
        """The same in fractions of `cost`, in single precision."""
        each = (self.tokens_S, self.line_S / cost, self.square_S / cost)
        return TowerSavings(*(values.astype(np.float32) for values in each))


@dataclass(frozen=True)
class Patches:
    """Patches that enter the vision tower, by sample of `tokens_S` tokens: once for all views, or anew in each where
    tokens are dropped before."""

    patches_S: np.ndarray
    tokens_S: np.ndarray
    freed: int | None = None  # patches that do not enter for a token that is dropped; None: after the tower

    def __call__(self, samples: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Of samples [M] that have [views, ..., M] tokens left."""
        if self.freed is None:
            return np.broadcast_to(self.patches_S[samples], tokens[0].shape)
        return (self.patches_S[samples] - self.freed * (self.tokens_S[samples] - tokens)).sum(0)


@dataclass(frozen=True)
class Budget:
    """What one micro-batch may hold. Micro-batches are equal in cost where it is given, else in tokens."""

    tokens: int  # that the language model reads, after pruning, in all views
    patches: int | None = None  # that enter the vision tower
    cost: float | None = None  # operations, by a SampleCost
    lookahead: int = 256  # samples beyond those that a step needs, among which the ones that fit are looked for

    def __post_init__(self) -> None:
        for name in ("tokens", "patches", "cost", "lookahead"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"a budget of {name}={value} must be at least 1")


class Loads:
    """Fractions of the budget that samples take at any rates, the one to be equal first.

    Kept tokens are looked up: videos come in few shapes, and rates recur.
    """

    def __init__(
        self,
        sizes: Sizes,
        kept: KeptCounts,
        budget: Budget,
        price: SampleCost | None,
        patches: Patches,
        *,
        typical: Views,
    ) -> None:
        assert (price is None) == (budget.cost is None)
        self.sizes, self.budget, self.patches = sizes, budget, patches
        self.cost = price.per(budget.cost) if price is not None and budget.cost is not None else None
        widest = int(sizes.tokens_V.max(initial=0)) + 1
        shapes, shape_V = np.unique(sizes.grids_V * widest + sizes.tokens_V, return_inverse=True)
        grids, tokens = np.divmod(shapes, widest)
        self.kept = lru_cache(RECURRING)(lambda rate: np.append(kept(grids, tokens, rate), 0).astype(np.float32))
        self.fixed_S, self.count_S = sizes.fixed_S.astype(np.float32), np.diff(sizes.first_S)
        self.shape_V = np.append(shape_V, len(shapes))  # the last has no tokens, and is that of no video
        self.shape_S = self.shape_V[np.where(self.count_S > 0, sizes.first_S[:-1], -1)]  # of the first video
        self._mean = lru_cache(RECURRING)(self._mean_about)
        self._rounded = lru_cache(RECURRING)(self._mean_at)  # recur even where rates do not
        share_S = self._alone(typical, np.arange(len(sizes)))[0]
        self.share_S = share_S / share_S.mean()  # at typical rates

    def at(self, rates: Sequence[Views]) -> LoadsAt:
        """In places of these rates."""
        return LoadsAt(self, rates, np.array([self._mean(views) for views in rates]).T)

    def _mean_about(self, views: Views) -> tuple[float, ...]:
        return self._rounded(tuple(min(round(rate, 2), 0.99) for rate in views))

    def _mean_at(self, views: Views) -> tuple[float, ...]:
        """[K] of an average sample."""
        some = np.linspace(0, len(self.sizes) - 1, min(TYPICAL, len(self.sizes))).astype(int)
        return tuple(self._alone(views, some).mean(1, dtype=np.float64).tolist())

    def _alone(self, views: Views, samples: np.ndarray) -> np.ndarray:
        """[K, M] in the only place."""
        return LoadsAt(self, [views], np.empty((0, 1)))(np.zeros(1, int), samples)


class LoadsAt:
    """Fractions of the budget that samples take in the places of one step."""

    def __init__(self, loads: Loads, rates: Sequence[Views], mean_KP: np.ndarray) -> None:
        self.of, self.mean_KP = loads, mean_KP
        views = [np.concatenate([loads.kept(rate) for rate in view]) for view in zip(*rates, strict=True)]
        self.kept_VX = np.stack(views)  # by place, and within it by shape
        self.shapes = self.kept_VX.shape[1] // len(rates)

    @property
    def share_S(self) -> np.ndarray:
        """What samples take of the first resource, in what an average one takes."""
        return self.of.share_S

    def __call__(self, places: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """[K, ...] of samples [M] in as many places, or in each of places [P, 1]."""
        of, tokens = self.of, self._tokens(places, samples)
        loads: list[np.ndarray] = [tokens.sum(0) * np.float32(1 / of.budget.tokens)]
        if of.cost is not None:
            loads.insert(0, of.cost(samples, tokens))
        if of.budget.patches is not None:
            loads.append(of.patches(samples, tokens) / of.budget.patches)
        return np.stack(loads, dtype=np.float32, casting="same_kind")

    def _tokens(self, places: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """[views, ...] that the language model reads."""
        of, begin = self.of, places * self.shapes
        tokens = self.kept_VX.take(begin + of.shape_S[samples], axis=1) + of.fixed_S[samples]
        count_M = of.count_S[samples]
        for nth in range(1, count_M.max(initial=0)):  # few have more than one video
            shape_M = of.shape_V[np.where(count_M > nth, of.sizes.first_S[samples] + nth, -1)]
            tokens += self.kept_VX.take(begin + shape_M, axis=1)
        return tokens
