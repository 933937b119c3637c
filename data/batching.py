"""Which samples share a step: functions of (seed, epoch, step), so that resuming needs no state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data.sizes import KeptCounts, Sizes
from data.sources.mixture import Mixture, order


@dataclass(frozen=True)
class Plan:
    """Fixed-size batches for one rank. Epochs follow each other without a gap in one endless stream of samples.

    A step takes the next accumulation * world * batch_size samples of the stream, whatever the three are, so the
    samples of a step do not depend on how it is split. No sample is lost or repeated within its epoch; the last step
    of an epoch is completed from the beginning of the next.
    """

    samples: int
    batch_size: int
    accumulation: int
    world: int
    rank: int
    seed: int
    shuffle: bool = True
    mixture: Mixture | None = None  # None: every sample once an epoch

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "accumulation", "world"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        assert 0 <= self.rank < self.world

    @property
    def samples_per_step(self) -> int:
        """Over all ranks."""
        return self.batch_size * self.accumulation * self.world

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see every sample at least once."""
        return -(-self.samples // self.samples_per_step)

    def micro_batches(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Sample indices of this rank's micro-batches in `step` (from 0): `accumulation` tuples of `batch_size`."""
        first = step * self.samples_per_step
        begins = [first + (turn * self.world + self.rank) * self.batch_size for turn in range(self.accumulation)]
        return tuple(tuple(map(self._sample, range(begin, begin + self.batch_size))) for begin in begins)

    def _sample(self, place: int) -> int:
        epoch, within = divmod(place, self.samples)
        return int(order(self.mixture or self.samples, self.seed, epoch)[within]) if self.shuffle else within


def shards(samples: int, batch_size: int, world: int, rank: int) -> tuple[tuple[int, ...], ...]:
    """This rank's batches when every sample is seen exactly once over all ranks.

    All ranks get as many batches, some of them short or empty: ranks that share a model step together.
    """
    rounds = -(-samples // (batch_size * world))
    begins = [(turn * world + rank) * batch_size for turn in range(rounds)]
    return tuple(tuple(range(min(begin, samples), min(begin + batch_size, samples))) for begin in begins)


@dataclass(frozen=True)
class Budget:
    """What one micro-batch may hold."""

    tokens: int  # that the language model reads, after pruning
    patches: int | None = None  # that the vision tower reads
    lookahead: int = 1024  # at most so many samples among which the ones that fit are looked for

    def __post_init__(self) -> None:
        for name in ("tokens", "patches", "lookahead"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"a budget of {name}={value} must be at least 1")

    @property
    def room(self) -> np.ndarray:
        return np.array([self.tokens, np.inf if self.patches is None else self.patches])


@dataclass(frozen=True)
class BudgetPlan:
    """Micro-batches filled to a budget at their step's own rate, for one rank, from sizes alone.

    Samples come in the epoch's order; where the next one does not fit, the largest of the look-ahead that do are taken
    before it. No sample waits for ever, since the oldest is always taken first, and none of the next epoch is taken
    before the last of this one. What a step holds depends on the steps before it in the same way on every rank, and
    not on how many ranks share it; planning one costs so little that resuming plans all anew.
    """

    sizes: Sizes
    budget: Budget
    rates: Callable[[int], Sequence[float]]  # of a global step's micro-batches, turn by turn and rank by rank
    kept: KeptCounts
    world: int
    rank: int
    seed: int
    mixture: Mixture | None = None  # None: every sample once an epoch

    def micro_batches(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Sample indices of this rank's micro-batches in `step` (from 0), one tuple for each of its rates."""
        return self._planner.step(step)[self.rank :: self.world]

    @cached_property
    def _planner(self) -> _Planner:
        return _Planner(self)

    def __getstate__(self) -> dict[str, Any]:  # a worker process plans for itself
        return {name: value for name, value in vars(self).items() if name != "_planner"}

    def check(self, rate: float, name: Callable[[int], str]) -> None:
        """ValueError where a sample alone is above the budget at `rate`, the lowest that will be drawn."""
        tokens = self.sizes.tokens(np.arange(len(self.sizes)), rate, self.kept)
        for what, cost, budget in (
            ("token", tokens, self.budget.tokens),
            ("patch", self.sizes.patches_S, self.budget.patches),
        ):
            if budget is not None and cost.max() > budget:
                raise ValueError(
                    f"train.{what}_budget={budget} is smaller than sample {name(int(cost.argmax()))} alone: "
                    f"give at least {cost.max()}, or cap the sample (data.max_tokens, data.max_frames)"
                )


class _Planner:
    """A place in the endless stream of steps. It moves forward; an earlier step is planned from the beginning."""

    def __init__(self, plan: BudgetPlan) -> None:
        self.plan = plan
        self._rewind()

    def _rewind(self) -> None:
        self.next, self.epoch = 0, 0
        self.last: tuple[tuple[int, ...], ...] = ()
        self._begin(0)

    def _begin(self, epoch: int) -> None:
        self.epoch, self.read = epoch, 0
        self.waiting = np.zeros(0, dtype=np.int64)
        self.costs = np.zeros((2, 0))  # tokens at the place's rate and patches of those that wait

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Sample indices by place."""
        if step < self.next - 1:
            self._rewind()
        while self.next <= step:
            self.last = tuple(map(self._place, self.plan.rates(self.next)))
            self.next += 1
        return self.last

    def _place(self, rate: float) -> tuple[int, ...]:
        """The next micro-batch; where an epoch ends in it, the next one's samples fill it up."""
        self.costs = self._price(self.waiting, rate)
        batch: list[int] = []
        room = self.plan.budget.room
        while True:
            self._look_ahead(rate)
            taken = fill(self.costs, room)
            batch += self.waiting[taken].tolist()
            room = room - self.costs[:, taken].sum(1)
            left = np.ones(len(self.waiting), dtype=bool)
            left[taken] = False
            self.waiting, self.costs = self.waiting[left], self.costs[:, left]
            if len(self.waiting) or not len(taken):
                assert batch, "no sample fits an empty micro-batch: BudgetPlan.check was not called"
                return tuple(batch)

    def _look_ahead(self, rate: float) -> None:
        """Fills the waiting samples up when half are gone; from the next epoch only when this one is used up."""
        samples, lookahead = len(self.plan.sizes), self.plan.budget.lookahead
        if self.read == samples and not len(self.waiting):
            self._begin(self.epoch + 1)
        if len(self.waiting) > lookahead // 2:
            return
        until = min(samples, self.read + lookahead - len(self.waiting))
        new = order(self.plan.mixture or samples, self.plan.seed, self.epoch)[self.read : until]
        self.read = until
        self.waiting = np.concatenate([self.waiting, new])
        self.costs = np.concatenate([self.costs, self._price(new, rate)], axis=1)

    def _price(self, places: np.ndarray, rate: float) -> np.ndarray:
        sizes = self.plan.sizes
        return np.array([sizes.tokens(places, rate, self.plan.kept), sizes.patches_S[places]], dtype=np.float64)


def fill(costs_2B: np.ndarray, room_2: np.ndarray) -> list[int]:
    """Which of the B samples to take: the first ones while they fit, then the largest of the others that do."""
    first = int((costs_2B.cumsum(1) <= room_2[:, None]).all(0).sum())  # costs are positive, so these come first
    taken = list(range(first))
    room_2 = room_2 - costs_2B[:, :first].sum(1)
    others = np.arange(first, costs_2B.shape[1])
    while True:
        tokens, patches = costs_2B[:, others]
        others = others[(tokens <= room_2[0]) & (patches <= room_2[1])]
        if not len(others):
            return taken
        best = int(costs_2B[0, others].argmax())
        taken.append(int(others[best]))
        room_2 = room_2 - costs_2B[:, taken[-1]]
        others = np.delete(others, best)
