"""The order of samples, as a function of (seed, epoch), so that resuming needs no state."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import floor

import numpy as np


@dataclass(frozen=True)
class Mixture:
    """Draws samples from several sources in proportion to their weights.

    The sources are concatenated in one sequence of samples; an epoch is as long as all of them together. Each source
    has epochs of its own, independent of the mixture's, in each of which every sample occurs once.
    """

    lengths: tuple[int, ...]  # samples of each source
    weights: tuple[float, ...]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """[N] indices of the epoch's samples, in order."""
        total, random = sum(self.lengths), np.random.default_rng((seed, epoch))
        begins, ends = self._drawn(epoch * total), self._drawn((epoch + 1) * total)
        source_N = random.permutation(np.repeat(np.arange(len(self.lengths)), ends - begins))
        order_N = np.empty(total, dtype=np.int64)
        for source, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist())):
            order_N[source_N == source] = self._draws(source, begin, end, seed)
        return order_N

    def _drawn(self, position: int) -> np.ndarray:
        """[sources] how many of the first `position` samples come from each source.

        The j-th sample of source k is due at position (j + 1/2) / share_k. Fractions keep this exact, so that counts
        never decrease.
        """
        total = sum(map(Fraction, self.weights))
        shares = [Fraction(weight) / total for weight in self.weights]
        due = max(position - len(shares), 0)
        counts = [floor(due * share + Fraction(1, 2)) for share in shares]
        while sum(counts) < position:
            following = min(range(len(shares)), key=lambda k: (counts[k] + Fraction(1, 2)) / shares[k])
            counts[following] += 1
        return np.array(counts, dtype=np.int64)

    def _draws(self, source: int, begin: int, end: int, seed: int) -> np.ndarray:
        """Indices of draws `begin` to `end` - 1 of a source, counted from its first draw."""
        length, first = self.lengths[source], sum(self.lengths[:source])
        epochs = range(begin // length, -(-end // length))
        drawn = [shuffled(length, seed, epoch, source) for epoch in epochs]
        skipped = begin // length * length
        return first + np.concatenate([np.empty(0, np.int64), *drawn])[begin - skipped : end - skipped]


@lru_cache(maxsize=2)
def shuffled(samples: int, *seed: int) -> np.ndarray:
    """A random permutation of so many samples."""
    return np.random.default_rng(seed).permutation(samples)


@lru_cache(maxsize=2)
def order(samples: int | Mixture, seed: int, epoch: int) -> np.ndarray:
    """[N] indices of an epoch's samples in order, for a number of samples or a mixture."""
    return samples.order(seed, epoch) if isinstance(samples, Mixture) else shuffled(samples, seed, epoch)
