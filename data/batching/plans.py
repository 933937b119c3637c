"""Which samples share a step: functions of (seed, epoch, step), so that resuming needs no state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np

from data.batching.bin_packing import pack
from data.batching.sample_cost import Budget, Loads, Patches, SampleCost
from data.batching.sizes import KeptCounts, Sizes, Views
from data.sources.mixture import Mixture, order

TERA = 10**12


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

    def micro_batches(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Sample indices of this rank's micro-batches in `step` (from 0): `accumulation` tuples of `batch_size`."""
        first = step * self.samples_per_step
        begins = [first + (turn * self.world + self.rank) * self.batch_size for turn in range(self.accumulation)]
        return tuple(tuple(map(self._sample, range(begin, begin + self.batch_size))) for begin in begins)

    def _sample(self, place: int) -> int:
        epoch, within = divmod(place, self.samples)
        return int(order(self.mixture or self.samples, self.seed, epoch)[within])


def shards(samples: int, batch_size: int, world: int, rank: int) -> tuple[tuple[int, ...], ...]:
    """This rank's batches when every sample is seen exactly once over all ranks.

    All ranks get as many batches, some of them short or empty: ranks that share a model step together.
    """
    rounds = -(-samples // (batch_size * world))
    begins = [(turn * world + rank) * batch_size for turn in range(rounds)]
    return tuple(tuple(range(min(begin, samples), min(begin + batch_size, samples))) for begin in begins)


@dataclass(frozen=True)
class BudgetPlan:
    """Micro-batches filled to a budget at their own rates, one or several (views), for one rank, from sizes alone.

    All micro-batches of a step are filled together out of the samples that are next in the epoch's order and some
    beyond, each sample at the rates of its place. No sample waits for ever, since the oldest is always taken. Near the
    end of an epoch, places that none of its last samples fits are filled with some of the next epoch, and with none of
    the one after that: no sample is lost or repeated within its epoch. What a step holds depends
    on the steps before it in the same way on every rank, and not on how many ranks share it; planning one costs so
    little that resuming plans all anew.
    """

    sizes: Sizes
    budget: Budget
    rates: Callable[[int], Sequence[Views]]  # of a global step's micro-batches, turn by turn and rank by rank
    kept: KeptCounts
    world: int
    rank: int
    seed: int
    mixture: Mixture | None = None  # None: every sample once an epoch
    price: SampleCost | None = None
    freed: int | None = None  # see Patches

    def micro_batches(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Sample indices of this rank's micro-batches in `step` (from 0), one tuple for each of its rates."""
        return self._planner.step(step)[self.rank :: self.world]

    @cached_property
    def patches(self) -> Patches:
        """That enter the vision tower, by sample and the tokens that are left of it."""
        return Patches(self.sizes.patches_S, self.sizes.unpruned(), self.freed)

    @cached_property
    def _planner(self) -> _Planner:
        return _Planner(self)

    def __getstate__(self) -> dict[str, Any]:  # a worker process plans for itself
        return {name: value for name, value in vars(self).items() if name not in ("_planner", "patches")}

    def check(self, rates: Views, name: Callable[[int], str]) -> None:
        """ValueError where a sample alone is above the budget at `rates`, the lowest that will be drawn."""
        everything = np.arange(len(self.sizes))
        tokens = self.sizes.in_views(everything, rates, self.kept)
        cost = self.price(everything, tokens) if self.price else None
        in_views, lower = (f" in {len(rates)} views", "lower train.views, ") if len(rates) > 1 else ("", "")
        for what, each, budget, unit in (
            ("token", tokens.sum(0), self.budget.tokens, 1),
            ("patch", self.patches(everything, tokens), self.budget.patches, 1),
            ("cost", cost, self.budget.cost, TERA),
        ):
            if budget is not None and each is not None and each.max() > budget:
                sample, least = name(int(each.argmax())), each.max() / unit
                raise ValueError(
                    f"train.{what}_budget={budget / unit:g} is smaller than sample {sample} alone{in_views}: give at "
                    f"least {least:g}, {lower}or cap the sample (data.max_tokens, data.max_frames)"
                )


class _Planner:
    """A place in the endless stream of steps. It moves forward; an earlier step is planned from the beginning."""

    def __init__(self, plan: BudgetPlan) -> None:
        rates = plan.rates(0)
        typical = sorted(rates)[len(rates) // 2]
        self.plan = plan
        self.loads = Loads(plan.sizes, plan.kept, plan.budget, plan.price, plan.patches, typical=typical)
        self._rewind()

    def _rewind(self) -> None:
        self.next = self.epoch = self.read = 0  # the step, and the next sample's place in the stream of epochs
        self.last: tuple[tuple[int, ...], ...] = ()
        self.waiting = np.zeros((2, 0), dtype=np.int64)  # [sample and its epoch, M] in order of age

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Sample indices by place."""
        if step < self.next - 1:
            self._rewind()
        while self.next <= step:
            self.last = self._fill(self.plan.rates(self.next))
            self.next += 1
        return self.last

    def _fill(self, rates: Sequence[Views]) -> tuple[tuple[int, ...], ...]:
        loads = self.loads.at(rates)
        self._look_ahead((1 / loads.mean_KP[0]).sum() + self.plan.budget.lookahead)
        place_M = pack(loads, self.waiting[0], self.waiting[1], self.next)
        by_place = np.argsort(place_M, kind="stable")
        ends = np.searchsorted(place_M[by_place], np.arange(len(rates) + 1)).tolist()
        taken = self.waiting[0, by_place].tolist()
        batches = tuple(tuple(taken[begin:end]) for begin, end in pairwise(ends))
        assert all(batches), "no sample fits an empty micro-batch: BudgetPlan.check was not called"
        self.waiting = self.waiting[:, place_M < 0]
        return batches

    def _look_ahead(self, wanted: float) -> None:
        """Lets samples wait that take as much as so many average ones."""
        share_S = self.loads.share_S
        while (missing := ceil(wanted - share_S[self.waiting[0]].sum())) > 0:
            epoch, within = divmod(self.read, len(self.plan.sizes))
            new = order(self.plan.mixture or len(self.plan.sizes), self.plan.seed, epoch)[within : within + missing]
            self.waiting = np.hstack([self.waiting, np.stack([new, np.full(len(new), epoch)])])
            self.read += len(new)
