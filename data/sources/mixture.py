"""The order in which samples come: a function of (seed, epoch), so that resuming needs no state."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import floor

import numpy as np


@dataclass(frozen=True)
class Mixture:
    """Sources of given lengths, side by side in one sequence of samples, and each one's share of what is drawn.

    An epoch is as long as all sources together. A source's draws run through an epoch of its own after another, in each
    of which no sample is lost or repeated, however the epochs of the whole fall.
    """

    lengths: tuple[int, ...]
    weights: tuple[float, ...]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Places of the epoch's samples, in order."""
        total, random = sum(self.lengths), np.random.default_rng((seed, epoch))
        begins, ends = self._drawn(epoch * total), self._drawn((epoch + 1) * total)
        source_N = random.permutation(np.repeat(np.arange(len(self.lengths)), ends - begins))
        order_N = np.empty(total, dtype=np.int64)
        for source, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist())):
            order_N[source_N == source] = self._draws(source, begin, end, seed)
        return order_N

    def _drawn(self, position: int) -> np.ndarray:
        """How many of the first `position` samples come from each source: the j-th of source k is due at
        (j + 1/2) / share_k. Exact, so that no count ever falls."""
        total = sum(map(Fraction, self.weights))
        shares = [Fraction(weight) / total for weight in self.weights]
        due = max(position - len(shares), 0)
        counts = [floor(due * share + Fraction(1, 2)) for share in shares]
        while sum(counts) < position:
            following = min(range(len(shares)), key=lambda k: (counts[k] + Fraction(1, 2)) / shares[k])
            counts[following] += 1
        return np.array(counts, dtype=np.int64)

    def _draws(self, source: int, begin: int, end: int, seed: int) -> np.ndarray:
        """Places of a source's draws from `begin` to `end`, counted from its first."""
        length, first = self.lengths[source], sum(self.lengths[:source])
        epochs = range(begin // length, -(-end // length))
        drawn = [shuffled(length, seed, epoch, source) for epoch in epochs]
        passed = begin // length * length
        return first + np.concatenate([np.empty(0, np.int64), *drawn])[begin - passed : end - passed]


@lru_cache(maxsize=2)
def shuffled(samples: int, *seed: int) -> np.ndarray:
    """A permutation of the samples."""
    return np.random.default_rng(seed).permutation(samples)


@lru_cache(maxsize=2)
def order(samples: int | Mixture, seed: int, epoch: int) -> np.ndarray:
    """The epoch's order of so many samples, or of a mixture's."""
    return samples.order(seed, epoch) if isinstance(samples, Mixture) else shuffled(samples, seed, epoch)
