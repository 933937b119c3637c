"""Samples into micro-batches of equal load: many places filled at once, in a number of array operations that does not
grow with them.

Axis legend: K resources, as fractions of their budgets, the first of which is to be equal; P places; M samples.
"""

from __future__ import annotations

import numpy as np

FULL = 0.98  # a place that holds as much of the first resource is full
DEALT = 0.75  # of the room left, the share that is dealt out without looking at how well it fits
EQUAL = 0.025  # of the mean, the spread that needs no second try
TRIES = 3
CHOICE = 64  # samples that one place is topped up from, and two more for each that competes


def pack(loads_KPM: np.ndarray, epoch_M: np.ndarray, turn: int) -> np.ndarray:
    """[M] the place of every sample, -1 for those not taken. Samples stand in order of age; the oldest is always taken,
    and one of a later epoch only where all earlier ones are.

    Where a cap keeps one place from being full, the others are filled to its level.
    """
    level, best, least = 1.0, np.full(loads_KPM.shape[2], -1), np.inf
    for _ in range(TRIES):
        packing = Packing(loads_KPM, epoch_M, level, turn)
        filled_P = packing.filled()
        spread = np.ptp(filled_P) / filled_P.mean() if filled_P.all() else np.inf
        if spread < least:
            best, least = packing.place_M, spread
        if spread <= EQUAL or spread == np.inf:
            break
        level = float(filled_P.min())
    return best


class Packing:
    """Places that are being filled up to `level` of the first resource, and to the brim of the others."""

    def __init__(self, loads_KPM: np.ndarray, epoch_M: np.ndarray, level: float, turn: int) -> None:
        self.loads = loads_KPM
        resources, places, samples = loads_KPM.shape
        self.room_KP = np.ones((resources, places))
        self.room_KP[0] = level
        self.place_M = np.full(samples, -1)
        self._take_oldest(turn)
        for epoch in range(epoch_M[0], epoch_M[-1] + 1):
            self.begin, self.end = np.searchsorted(epoch_M, [epoch, epoch + 1])
            while self._deal():
                pass
            while self._top_up():
                pass
            if len(self._free()):
                break
        for place in np.flatnonzero(self.room_KP[0] > (1 - FULL) * level):
            self._exchange(int(place), level)

    def _free(self) -> np.ndarray:
        """Samples of the epoch that may be taken."""
        return self.begin + np.flatnonzero(self.place_M[self.begin : self.end] < 0)

    def filled(self) -> np.ndarray:
        """[P] of the first resource."""
        taken = self.place_M >= 0
        places = self.place_M[taken]
        return np.bincount(places, self.loads[0, places, taken.nonzero()[0]], self.loads.shape[1])

    def _put(self, places: np.ndarray, samples: np.ndarray) -> None:
        """Samples that fit; a place may be named more than once."""
        self.place_M[samples] = places
        for room_P, load_PM in zip(self.room_KP, self.loads):
            room_P -= np.bincount(places, load_PM[places, samples], len(room_P))

    def _take_oldest(self, turn: int) -> None:
        """To another place from step to step; where it is above the level everywhere, to where it costs least."""
        fits = np.flatnonzero((self.loads[:, :, 0] <= self.room_KP).all(0))
        place = fits[turn % len(fits)] if len(fits) else self.loads[0, :, 0].argmin()
        self._put(np.array([place]), np.array([0]))

    def _deal(self) -> bool:
        """Gives every place samples of all sizes, as many as their mean load lets expect; False where nothing is left
        to deal. In order of age, but for those that do not fit."""
        free = self._free()
        if not len(free):
            return False
        each_P = self.loads[0].take(free[:64], axis=1).mean(1)  # the 64 oldest stand for the others
        count_P = (DEALT * np.maximum(self.room_KP[0], 0) / each_P).astype(int)
        if count_P.sum() < len(count_P) / 2:
            return False
        if (asked := count_P.sum()) > len(free):
            count_P = count_P * len(free) // asked
        owner, first = (np.repeat(each, count_P) for each in (np.arange(len(count_P)), count_P.cumsum() - count_P))
        evenly = np.argsort((np.arange(len(owner)) - first + 0.5) / count_P[owner], kind="stable")
        samples = free[: len(owner)]
        samples[evenly] = samples[np.argsort(-self.loads[0, len(count_P) // 2, samples], kind="stable")]
        fits = self._fits_in_sequence(owner, first, samples)
        self._put(owner[fits], samples[fits])
        return bool(fits.any())

    def _fits_in_sequence(self, owner: np.ndarray, first: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Which samples fit beside those before them in the same place, which begin at `first`."""
        loads_KB = self.loads[:, owner, samples]
        before_KB = np.zeros((len(loads_KB), len(owner) + 1))
        np.cumsum(loads_KB, axis=1, out=before_KB[:, 1:])
        used_KB = before_KB[:, 1:] - before_KB[:, first]
        return np.logical_and.reduce(used_KB <= self.room_KP[:, owner])

    def _top_up(self) -> bool:
        """Gives every place that is not full the largest free sample that fits; False where none does."""
        short = np.flatnonzero(self.room_KP[0] > (1 - FULL) / 2)
        free = self._free()[: CHOICE + 2 * len(short)]
        if not len(short) or not len(free):
            return False
        loads_KSF = self.loads.take(free, axis=2)[:, short]
        fits_SF = (loads_KSF <= self.room_KP[:, short, None]).all(0)
        gain_SF = loads_KSF[0] * fits_SF
        best_S = gain_SF.argmax(1)
        gain_S = gain_SF[np.arange(len(short)), best_S]
        order = np.argsort(gain_S, kind="stable")
        order = order[gain_S[order] > 0]
        who_F = np.full(len(free), -1)
        who_F[best_S[order]] = order  # of those that want the same one, who gains most comes last
        chosen = who_F[who_F >= 0]
        self._put(short[chosen], free[best_S[chosen]])
        return bool(len(chosen))

    def _exchange(self, place: int, level: float) -> None:
        """Swaps a sample of the place for one or two free ones that fill it better, while that helps and is needed."""
        for pair in (False, True, False):
            if self.room_KP[0, place] <= (1 - FULL) * level:
                return
            own = np.flatnonzero(self.place_M == place)
            own = own[own >= max(1, self.begin)]  # neither the oldest nor one of an earlier epoch
            free = self._free()
            if not len(own) or len(free) < 1 + pair:
                return
            self._swap(place, own, _pairs(free[:96]) if pair else free[:, None])

    def _swap(self, place: int, own: np.ndarray, groups_GN: np.ndarray) -> None:
        loads_KM = self.loads[:, place]
        new_KG = loads_KM[:, groups_GN].sum(-1)
        room_KO = self.room_KP[:, place, None] + loads_KM[:, own]
        fits_OG = (new_KG[:, None] <= room_KO[:, :, None]).all(0)
        left_OG = np.where(fits_OG, room_KO[0][:, None] - new_KG[0], np.inf)
        out, group = np.unravel_index(left_OG.argmin(), left_OG.shape)
        if left_OG[out, group] >= self.room_KP[0, place]:
            return
        self.place_M[own[out]] = -1
        self.room_KP[:, place] += loads_KM[:, own[out]]
        self._put(np.full(groups_GN.shape[1], place), groups_GN[group])


def _pairs(free: np.ndarray) -> np.ndarray:
    """[G, 2] all pairs."""
    first, second = np.triu_indices(len(free), 1)
    return np.stack([free[first], free[second]], axis=1)
