"""What samples take of a micro-batch's budget at any rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np

from data.sizes import KeptCounts, Sizes, Views

TYPICAL = 4096  # samples whose mean stands for all
RECURRING = 256  # rates whose counts are kept


class Reading(NamedTuple):
    """Operations of the language model on n tokens of a sample: token * n + look * n (n + 1) / 2."""

    token: float
    look: float


@dataclass(frozen=True)
class Price:
    """Operations of a training step by sample: fixed_S, and in each view those of reading what is left of it."""

    fixed_S: np.ndarray  # of the tower and the heads, in all views
    views: tuple[Reading, ...]
    spared: Spared | None = None  # in each view, by a tower that is given what is left; None: it sees everything, once

    def __call__(self, samples: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Of samples [M] that have [views, ..., M] tokens left, in the dtype of the prices."""
        cost: np.ndarray = self.fixed_S[samples]
        for (token, look), left in zip(self.views, tokens, strict=True):
            cost = cost + left * (left * (look / 2) + (token + look / 2))
            if self.spared is not None:
                cost = cost - self.spared(samples, left)
        return cost

    def per(self, cost: float) -> Price:
        """The same in fractions of `cost`, in single precision."""
        views = tuple(
            Reading(float(token / cost), float(look / cost)) for token, look in self.views
        )  # no float64 array
        return Price((self.fixed_S / cost).astype(np.float32), views, self.spared and self.spared.per(cost))


@dataclass(frozen=True)
class Spared:
    """Operations that a vision tower is spared where d of a sample's `tokens_S` are dropped before it: d line - d^2
    square."""

    tokens_S: np.ndarray
    line_S: np.ndarray
    square_S: np.ndarray

    def __call__(self, samples: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        dropped = self.tokens_S[samples] - tokens
        return dropped * (self.line_S[samples] - dropped * self.square_S[samples])

    def per(self, cost: float) -> Spared:
        """The same in fractions of `cost`, in single precision."""
        each = (self.tokens_S, self.line_S / cost, self.square_S / cost)
        return Spared(*(values.astype(np.float32) for values in each))


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
    cost: float | None = None  # operations, by a Price
    lookahead: int = 256  # samples beyond those that a step needs, among which the ones that fit are looked for

    def __post_init__(self) -> None:
        for name in ("tokens", "patches", "cost", "lookahead"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"a budget of {name}={value} must be at least 1")


class Loads:
    """Fractions of the budget [K, P, M] that samples take in the views of places, the one to be equal first.

    Kept tokens are looked up: videos come in few shapes, and rates recur.
    """

    def __init__(self, sizes: Sizes, kept: KeptCounts, budget: Budget, price: Price | None, patches: Patches) -> None:
        assert (price is None) == (budget.cost is None)
        self.sizes, self.budget, self.patches = sizes, budget, patches
        self.cost = price.per(budget.cost) if price is not None and budget.cost is not None else None
        widest = int(sizes.tokens_V.max(initial=0)) + 1
        shapes, self.shape_V = np.unique(sizes.grids_V * widest + sizes.tokens_V, return_inverse=True)
        grids, tokens = np.divmod(shapes, widest)
        self._kept = lru_cache(RECURRING)(lambda rate: np.append(kept(grids, tokens, rate), 0).astype(np.float32))
        self.fixed_S = sizes.fixed_S.astype(np.float32)
        self._samples = lru_cache(RECURRING)(self._about_as_many)
        self._rounded = lru_cache(RECURRING)(self._as_many)  # recur even where rates do not

    def __call__(self, samples: np.ndarray, rates: Sequence[Views]) -> np.ndarray:
        tokens = self._tokens(samples, list(chain.from_iterable(zip(*rates, strict=True))))
        views = tokens.reshape(-1, len(rates), len(samples))
        loads: list[np.ndarray] = [views.sum(0) * np.float32(1 / self.budget.tokens)]
        if self.cost is not None:
            loads.insert(0, self.cost(samples, views))
        if self.budget.patches is not None:
            loads.append(self.patches(samples, views) / self.budget.patches)
        return np.stack(loads, dtype=np.float32, casting="same_kind")

    def expected(self, rates: Sequence[Views]) -> int:
        """About how many samples fill micro-batches of these rates."""
        return 1 + int(sum(map(self._samples, rates)))

    def _about_as_many(self, views: Views) -> float:
        return self._rounded(tuple(min(round(rate, 2), 0.99) for rate in views))

    def _as_many(self, views: Views) -> float:
        """As many samples as fill a micro-batch on average."""
        some = np.linspace(0, len(self.sizes) - 1, min(TYPICAL, len(self.sizes))).astype(int)
        return 1 / float(self(some, [views])[0].mean())

    def _tokens(self, samples: np.ndarray, rates: Sequence[float]) -> np.ndarray:
        """[rates, M] that the language model reads."""
        first_M = self.sizes.first_S[samples]
        counts_M = self.sizes.first_S[samples + 1] - first_M
        kept_PU = np.stack([self._kept(rate) for rate in rates])
        tokens_PM = self.fixed_S[samples]
        for nth in range(counts_M.max(initial=0)):  # few have more than one video
            shape_M = np.full(len(samples), -1)  # of the last entry, which is 0
            shape_M[counts_M > nth] = self.shape_V[first_M[counts_M > nth] + nth]
            tokens_PM = tokens_PM + kept_PU.take(shape_M, axis=1)
        return np.broadcast_to(tokens_PM, (len(rates), len(samples)))
