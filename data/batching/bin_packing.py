"""Bin packing of samples into the micro-batches of a step, made equal in their first resource (cost).

Greedy, longest processing time first: the emptiest bin takes the largest sample that fits.
Axis legend: P bins (micro-batches of the global step); K resources, as fractions of their budgets: the first is made
equal, the others are caps; M waiting samples; F free ones.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

EQUAL = 0.02  # spread of the first resource over the bins, relative to the mean, that needs no lower level
FULL = 0.99  # share of the level from which a bin takes no sample of a later epoch
TRIES = 8  # levels tried if a cap keeps some bins from the level of the others


class Loading(Protocol):
    """Fractions of the budgets that samples take in the bins of a step."""

    mean_KP: np.ndarray  # of an average sample

    @property
    def share_S(self) -> np.ndarray: ...  # of the first resource, relative to an average sample
    def __call__(self, places: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """[K, P, M] of samples [M] in bins [P, 1]."""


def pack(loads: Loading, samples_M: np.ndarray, epoch_M: np.ndarray, turn: int) -> np.ndarray:
    """[M] bin of every sample, -1 for those that keep waiting.

    Samples are given in order of age. The oldest is always taken, by another bin at each `turn`; one of the next epoch
    only by a bin in which none of this epoch fits. If caps bind, all bins are filled to the highest equal level found.
    """
    load_PKM = loads(np.arange(loads.mean_KP.shape[1])[:, None], samples_M).swapaxes(0, 1)
    low, high, level = float(load_PKM[:, 0, 0].min()), 1.0, 1.0  # the oldest sample fits at any of these levels
    best_M, least = np.full(len(samples_M), -1), np.inf
    for _ in range(TRIES):
        packing = Packing(load_PKM, level)
        packing.fill(loads.mean_KP[0], loads.share_S[samples_M], epoch_M, turn)
        used_P = level - packing.room_PK[:, 0]
        spread = np.ptp(used_P) / used_P.mean() if used_P.all() else np.inf
        if spread <= EQUAL or spread < least:
            best_M, least = packing.bin_M, spread
        low, high = (level, high) if spread <= EQUAL else (low, level)
        if high - low <= EQUAL * high:
            break
        level = float(used_P.min()) if level == high and used_P.min() > low else (low + high) / 2
    return best_M


class Packing:
    """Bins filled up to `level` of the first resource, and up to the caps of the others."""

    def __init__(self, load_PKM: np.ndarray, level: float) -> None:
        self.load_PKM, self.level = load_PKM, level
        self.room_PK = np.ones(load_PKM.shape[:2])
        self.room_PK[:, 0] = level
        self.bin_M = np.full(load_PKM.shape[2], -1)

    def fill(self, mean_P: np.ndarray, share_M: np.ndarray, epoch_M: np.ndarray, turn: int) -> None:
        """Fill all bins, from as many of the oldest samples as average ones would be needed, then from all."""
        fits = np.flatnonzero((self.load_PKM[:, :, 0] <= self.room_PK).all(1))
        self._put(fits[turn % len(fits)] if len(fits) else int(self.load_PKM[:, 0, 0].argmin()), 0)
        left = 0
        for epoch in range(epoch_M[0], epoch_M[-1] + 1):
            free = ((self.bin_M < 0) & (epoch_M == epoch)).nonzero()[0]
            wanted = (self.room_PK[:, 0] / mean_P).sum()
            self._take(free[: np.searchsorted(share_M[free].cumsum(), wanted) + 1])
            self._take(free := free[self.bin_M[free] < 0])
            if left or self.room_PK[:, 0].max() <= (1 - FULL) * self.level:
                break
            left = (self.bin_M[free] < 0).sum()  # if some are left, the next epoch is the last

    def _take(self, free: np.ndarray) -> None:
        """Let the emptiest bin take the largest of these samples that fits, until none fits in any bin."""
        load_PKF, room_P = self.load_PKM.take(free, axis=2), self.room_PK[:, 0].copy()
        while len(free) and room_P[number := int(room_P.argmax())] > 0:
            fits_F = (load_PKF[number] <= self.room_PK[number, :, None]).all(0)
            chosen = int(np.where(fits_F, load_PKF[number, 0], -1).argmax())
            if fits_F[chosen]:
                self._put(number, free[chosen])
                load_PKF[:, 0, chosen] = np.inf  # taken
            room_P[number] = self.room_PK[number, 0] if fits_F[chosen] else 0

    def _put(self, number: int, sample: int) -> None:
        self.bin_M[sample] = number
        self.room_PK[number] -= self.load_PKM[number, :, sample]
