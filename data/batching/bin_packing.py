"""Samples into micro-batches of equal load: many places filled at once, in a number of array operations that hardly
grows with their number.

Axis legend: K resources, as fractions of their budgets, the first of which is to be equal and the others of which are
caps; P places; M waiting samples; F free ones; B pairs of a place and a sample; S places that are short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

FULL = 0.98  # a place that holds as much of the first resource is full
TOPPED = 0.99  # and one of so much is topped up no further
EQUAL = 0.025  # of the mean, the spread that needs no second try
TRIES = 3
BOUND_TRIES = 6  # where caps bind; the first of them
CAREFUL = 3  # lower the level by so much at most:
LOWER = 0.95
HIGHER = 1.03  # where caps bind, the level that is tried first, beside the last step's
BOUND = 0.95  # of a cap: where average samples take more, they are dealt by what they take of it
CHOICE = 64  # samples that one place is topped up from, and three more for each that competes
EXCHANGED = 512  # free samples that a place exchanges with


class Loading(Protocol):
    """What samples take in the places of a step."""

    mean_KP: np.ndarray  # of an average one

    @property
    def share_S(self) -> np.ndarray: ...  # of the first resource, in what an average one takes

    def __call__(self, places: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """[K, ...] of samples [M] in as many places, or in each of places [P, 1]."""


@dataclass(frozen=True)
class Packed:
    place_M: np.ndarray  # -1 for samples that are not taken
    gain: float  # where caps bind: the level beside the one that average samples everywhere would allow


def pack(loads: Loading, samples_M: np.ndarray, epoch_M: np.ndarray, turn: int, gain: float = 1.0) -> Packed:
    """The place of every sample. Samples stand in order of age; the oldest is always taken, one of the next epoch only
    where none of this fits.

    Where a cap keeps one place from being full, the others are filled to its level. `gain`: the last step's.
    """
    average = min(1.0, float((loads.mean_KP[0] / loads.mean_KP).min()))
    oldest = _least(loads, samples_M[0]) if average < 1 else 0.0
    level = min(1.0, max(HIGHER * gain * average, oldest))
    best, reached, least = np.full(len(samples_M), -1), level, np.inf
    for trial in range(BOUND_TRIES if average < 1 else TRIES):
        packing = Packing(loads, samples_M, level)
        packing.fill(epoch_M, turn)
        filled_P = level - packing.room_KP[0]
        spread = np.ptp(filled_P) / filled_P.mean() if filled_P.all() else np.inf
        if spread < least:
            best, reached, least = packing.place_M, level, spread
        lower = float(filled_P.min())
        if average < 1 and trial < CAREFUL:
            lower = max(lower, LOWER * level)
        following = max(lower, oldest) if filled_P.all() else 1.0
        if spread <= EQUAL or following == level:
            break
        level = following
    return Packed(best, max(1.0, reached / average) if average < 1 else gain)


def _least(loads: Loading, sample: int) -> float:
    """Of the first resource, that a sample takes in any place; the whole where it takes more."""
    places = np.arange(loads.mean_KP.shape[1])
    return min(1.0, float(loads(places, np.full_like(places, sample))[0].min()))


class Packing:
    """Places that are being filled up to `level` of the first resource, and to the brim of the others."""

    def __init__(self, loads: Loading, samples_M: np.ndarray, level: float) -> None:
        self.loads, self.samples_M, self.level = loads, samples_M, level
        self.place_M = np.full(len(samples_M), -1)
        self.room_KP = np.ones(loads.mean_KP.shape)
        self.room_KP[0] = level
        self.all_P = np.arange(loads.mean_KP.shape[1])

    def fill(self, epoch_M: np.ndarray, turn: int) -> None:
        self._take_oldest(turn)
        left = 0
        for epoch in range(epoch_M[0], epoch_M[-1] + 1):
            self.begin, self.end = np.searchsorted(epoch_M, [epoch, epoch + 1])
            self._deal()
            self._top_up()
            if left or not len(self._short()):
                break
            left = len(self._free())  # so that the next epoch is the last
        unequal = np.flatnonzero(self.room_KP[0] > (1 - FULL) * self.level)
        if len(unequal) <= max(2, len(self.all_P) // 8):  # else a lower level is due
            for place in unequal.tolist():
                self._exchange(place)

    def _loads(self, places: np.ndarray, waiting: np.ndarray) -> np.ndarray:
        return self.loads(places, self.samples_M[waiting])

    def _free(self) -> np.ndarray:
        """Samples of the epoch that may be taken."""
        return self.begin + np.flatnonzero(self.place_M[self.begin : self.end] < 0)

    def _short(self) -> np.ndarray:
        """Places that want more."""
        return np.flatnonzero(self.room_KP[0] > (1 - TOPPED) * self.level)

    def _put(self, places: np.ndarray, waiting: np.ndarray, loads_KB: np.ndarray) -> None:
        """Samples that fit; a place may be named more than once."""
        self.place_M[waiting] = places
        for room_P, load_B in zip(self.room_KP, loads_KB):
            room_P -= np.bincount(places, load_B, len(room_P))

    def _take_oldest(self, turn: int) -> None:
        """To another place from step to step; where it is above the level everywhere, to where it costs least."""
        loads_KP = self._loads(self.all_P, np.zeros_like(self.all_P))
        fits = np.flatnonzero((loads_KP <= self.room_KP).all(0))
        place = fits[turn % len(fits)] if len(fits) else loads_KP[0].argmin()
        self._put(np.array([place]), np.array([0]), loads_KP[:, place, None])

    def _deal(self) -> None:
        """Gives every place as many samples as their loads let expect, the oldest but for those that do not fit."""
        free, mean_KP = self._free(), self.loads.mean_KP
        wanted_P = np.maximum(self.room_KP[0], 0) / mean_KP[0]  # average samples
        if not len(free) or not wanted_P.any():
            return
        taken_F = self.loads.share_S[self.samples_M[free]].cumsum()
        count_P = (wanted_P * (np.searchsorted(taken_F, wanted_P.sum()) / wanted_P.sum())).astype(int)
        if (mean_KP[1:] * self.level > BOUND * mean_KP[0]).any():
            self._deal_by_caps(free, count_P)
        elif count_P.any():
            self._deal_by_size(free[: count_P.sum()], count_P)

    def _deal_by_size(self, waiting: np.ndarray, count_P: np.ndarray) -> None:
        """Gives every place samples of all sizes."""
        owner = np.repeat(self.all_P, count_P)
        first = (count_P.cumsum() - count_P)[owner]
        evenly = np.argsort((np.arange(len(owner)) - first + 0.5) / count_P[owner], kind="stable")
        by_size = np.argsort(-self.loads.share_S[self.samples_M[waiting]], kind="stable")
        dealt = np.empty_like(waiting)
        dealt[evenly] = waiting[by_size]
        loads_KB = self._loads(owner, dealt)
        before_KB = np.zeros((len(loads_KB), len(owner) + 1))
        np.cumsum(loads_KB, axis=1, out=before_KB[:, 1:])
        used_KB = before_KB[:, 1:] - before_KB[:, first]  # with those before them in the same place
        fits = np.logical_and.reduce(used_KB <= self.room_KP[:, owner])
        self._put(owner[fits], dealt[fits], loads_KB[:, fits])

    def _deal_by_caps(self, free: np.ndarray, count_P: np.ndarray) -> None:
        """Gives what takes the least of the caps to the places that these will keep lowest, in as many turns as the
        largest count, over which the others' are spread."""
        mean_KP, turns = self.loads.mean_KP, int(count_P.max())
        per_KP = mean_KP[1:] / mean_KP[0]
        loads_KF = self._loads(per_KP.max(0).argmax()[None], free)
        heavy_F = loads_KF[1:].max(0) / loads_KF[0]
        begin = 0
        for turn in range(turns):
            places = ((turn + 1) * count_P // turns > turn * count_P // turns).nonzero()[0]
            given = slice(begin, begin + len(places))
            begin += len(places)
            reach_S = (self.room_KP[1:, places] / per_KP[:, places]).min(0) - self.room_KP[0, places]
            places = places[reach_S.argsort(kind="stable")]
            waiting = free[given][heavy_F[given].argsort(kind="stable")]
            loads_KB = self._loads(places, waiting)
            fits = np.logical_and.reduce(loads_KB <= self.room_KP[:, places])
            self._put(places[fits], waiting[fits], loads_KB[:, fits])

    def _top_up(self) -> None:
        """Gives every place that is not full the largest free sample that fits, again and again."""
        short = self._short()
        free = self._free()[: CHOICE + 3 * len(short)]
        if not len(short) or not len(free):
            return
        loads_KSF = self._loads(short[:, None], free)
        while len(short):
            room_KS = self.room_KP[:, short].astype(np.float32)
            fits_SF = loads_KSF[0] <= room_KS[0, :, None]
            for load_SF, room_S in zip(loads_KSF[1:], room_KS[1:]):
                fits_SF &= load_SF <= room_S[:, None]
            gain_SF = loads_KSF[0] * fits_SF
            best_S = gain_SF.argmax(1)
            gain_S = gain_SF[np.arange(len(short)), best_S]
            order = gain_S.argsort(kind="stable")
            order = order[gain_S[order] > 0]
            who_F = np.full(len(free), -1)
            who_F[best_S[order]] = order  # of those that want the same one, who gains most comes last
            taken = (who_F >= 0).nonzero()[0]
            chosen = who_F[taken]
            self._put(short[chosen], free[taken], loads_KSF[:, chosen, taken])
            loads_KSF[0, :, taken] = 9  # more than any room: nobody else takes it
            going_on = ((gain_S > 0) & (self.room_KP[0, short] > (1 - TOPPED) * self.level)).nonzero()[0]
            short, loads_KSF = short[going_on], loads_KSF[:, going_on]

    def _exchange(self, place: int) -> None:
        """Swaps a sample of the place for one or two free ones that fill it better, while that helps and is needed."""
        for pair in (False, True, False):
            if self.room_KP[0, place] <= (1 - FULL) * self.level:
                return
            own = (self.place_M == place).nonzero()[0]
            own = own[own >= max(1, self.begin)]  # neither the oldest nor one of an earlier epoch
            free = self._free()[:EXCHANGED]
            if not len(own) or len(free) < 1 + pair:
                return
            self._swap(place, own, _pairs(free[:96]) if pair else free[:, None])

    def _swap(self, place: int, own: np.ndarray, groups_GN: np.ndarray) -> None:
        here = np.array([place])
        new_KG = self._loads(here, groups_GN.ravel()).reshape(-1, *groups_GN.shape).sum(-1)
        own_KO = self._loads(here, own)
        room_KO = self.room_KP[:, place, None] + own_KO
        fits_OG = (new_KG[:, None] <= room_KO[:, :, None]).all(0)
        left_OG = np.where(fits_OG, room_KO[0][:, None] - new_KG[0], np.inf)
        out, group = np.unravel_index(left_OG.argmin(), left_OG.shape)
        if left_OG[out, group] >= self.room_KP[0, place]:
            return
        self.place_M[own[out]] = -1
        self.room_KP[:, place] += own_KO[:, out] - new_KG[:, group]
        self.place_M[groups_GN[group]] = place


def _pairs(free: np.ndarray) -> np.ndarray:
    """[G, 2] all pairs."""
    first, second = np.triu_indices(len(free), 1)
    return np.stack([free[first], free[second]], axis=1)
