"""Bin packing of samples into the micro-batches of a step, balanced by the first resource (cost).

Greedy, in the order "longest processing time first": the emptiest bin takes the largest sample that fits.
Axis legend: P bins (micro-batches of the global step); K resources, as fractions of their budgets: the first is
balanced, the others are caps; M waiting samples; F samples not yet assigned.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

BALANCED = 0.02  # accepted (max - min) / mean of the first resource over the bins
FULL = 0.99  # fraction of the level above which a bin takes no sample of the next epoch
MAX_LEVELS = 8  # levels tried if a cap keeps some bins below the others


class Loads(Protocol):
    """Fractions of the budgets that samples take in the bins of a step."""

    mean_KP: np.ndarray  # loads of an average sample

    @property
    def share_S(self) -> np.ndarray: ...  # load of the first resource, relative to an average sample
    def __call__(self, bins: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """[K, P, M] loads of samples [M] in bins [P, 1]."""


def pack(loads: Loads, samples_M: np.ndarray, epoch_M: np.ndarray, turn: int) -> np.ndarray:
    """[M] bin of every sample, -1 for samples that keep waiting.

    Samples are given oldest first. The oldest is always assigned, to a bin that rotates with `turn`. A sample of the
    next epoch is assigned only to a bin in which no sample of this epoch fits. If caps leave the bins unbalanced, all
    are filled to the highest common level found.
    """
    load_PKM = loads(np.arange(loads.mean_KP.shape[1])[:, None], samples_M).swapaxes(0, 1)
    low, high, level = float(load_PKM[:, 0, 0].min()), 1.0, 1.0  # the oldest sample fits at any of these levels
    best_M, best_spread = np.full(len(samples_M), -1), np.inf
    for _ in range(MAX_LEVELS):
        packing = Packing(load_PKM, level)
        packing.fill(loads.mean_KP[0], loads.share_S[samples_M], epoch_M, turn)
        used_P = level - packing.capacity_PK[:, 0]
        spread = np.ptp(used_P) / used_P.mean() if used_P.all() else np.inf
        if spread <= BALANCED or spread < best_spread:
            best_M, best_spread = packing.bin_M, spread
        low, high = (level, high) if spread <= BALANCED else (low, level)
        if high - low <= BALANCED * high:
            break
        level = float(used_P.min()) if level == high and used_P.min() > low else (low + high) / 2
    return best_M


class Packing:
    """Assigns samples to bins, up to `level` of the first resource and up to the caps of the others."""

    def __init__(self, load_PKM: np.ndarray, level: float) -> None:
        self.load_PKM, self.level = load_PKM, level
        self.capacity_PK = np.ones(load_PKM.shape[:2])
        self.capacity_PK[:, 0] = level
        self.bin_M = np.full(load_PKM.shape[2], -1)

    def fill(self, mean_P: np.ndarray, share_M: np.ndarray, epoch_M: np.ndarray, turn: int) -> None:
        """Fill all bins, first from the oldest samples (about the number needed), then from all waiting ones."""
        fits = np.flatnonzero((self.load_PKM[:, :, 0] <= self.capacity_PK).all(1))
        self._assign(fits[turn % len(fits)] if len(fits) else int(self.load_PKM[:, 0, 0].argmin()), 0)
        remaining = 0
        for epoch in range(epoch_M[0], epoch_M[-1] + 1):
            free = ((self.bin_M < 0) & (epoch_M == epoch)).nonzero()[0]
            wanted = (self.capacity_PK[:, 0] / mean_P).sum()
            self._fill_from(free[: np.searchsorted(share_M[free].cumsum(), wanted) + 1])
            self._fill_from(free := free[self.bin_M[free] < 0])
            if remaining or self.capacity_PK[:, 0].max() <= (1 - FULL) * self.level:
                break
            remaining = (self.bin_M[free] < 0).sum()  # if some remain, no epoch after the next is used

    def _fill_from(self, free: np.ndarray) -> None:
        """Assign the largest sample that fits to the emptiest bin, until no sample fits in any bin."""
        load_PKF, capacity_P = self.load_PKM.take(free, axis=2), self.capacity_PK[:, 0].copy()
        while len(free) and capacity_P[number := int(capacity_P.argmax())] > 0:
            fits_F = (load_PKF[number] <= self.capacity_PK[number, :, None]).all(0)
            chosen = int(np.where(fits_F, load_PKF[number, 0], -1).argmax())
            if fits_F[chosen]:
                self._assign(number, free[chosen])
                load_PKF[:, 0, chosen] = np.inf  # assigned
            capacity_P[number] = self.capacity_PK[number, 0] if fits_F[chosen] else 0

    def _assign(self, number: int, sample: int) -> None:
        self.bin_M[sample] = number
        self.capacity_PK[number] -= self.load_PKM[number, :, sample]
