"""Which samples form each step, as functions of (seed, epoch, step), so that resuming needs no state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np

from data.batching.bin_packing import pack
from data.batching.sample_cost import BinLoads, Budget, Patches, SampleCost
from data.sizes import KeptCounts, Rates, Sizes
from data.sources.mixture import Mixture, order

TERA = 10**12


@dataclass(frozen=True)
class Plan:
    """Fixed-size batches for one rank, from an endless stream of samples in which epochs follow each other.

    A step takes the next accumulation * world * batch_size samples of the stream, so its samples depend only on the
    product of the three. Every sample occurs once in its epoch; the last step of an epoch is completed from the next.
    """

    samples: int
    batch_size: int
    accumulation: int
    world: int
    rank: int
    seed: int
    mixture: Mixture | None = None  # None: every sample once per epoch

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "accumulation", "world"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        assert 0 <= self.rank < self.world

    @property
    def samples_per_step(self) -> int:
        """Samples of one step over all ranks."""
        return self.batch_size * self.accumulation * self.world

    def micro_batches(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Sample indices of this rank's micro-batches in `step` (from 0): `accumulation` tuples of `batch_size`."""
        first = step * self.samples_per_step
        begins = [first + (turn * self.world + self.rank) * self.batch_size for turn in range(self.accumulation)]
        return tuple(tuple(map(self._sample, range(begin, begin + self.batch_size))) for begin in begins)

    def _sample(self, position: int) -> int:
        epoch, offset = divmod(position, self.samples)
        return int(order(self.mixture or self.samples, self.seed, epoch)[offset])


def shards(samples: int, batch_size: int, world: int, rank: int) -> tuple[tuple[int, ...], ...]:
    """This rank's batches of sample indices, such that every sample occurs once over all ranks.

    All ranks get the same number of batches, some short or empty, because ranks that share a model step together.
    """
    rounds = -(-samples // (batch_size * world))
    begins = [(turn * world + rank) * batch_size for turn in range(rounds)]
    return tuple(tuple(range(min(begin, samples), min(begin + batch_size, samples))) for begin in begins)


@dataclass(frozen=True)
class BudgetPlan:
    """Micro-batches filled to a budget, for one rank, from predicted sizes at the pruning rates of each micro-batch.

    All micro-batches of a step are filled together from the next samples of the epoch and a lookahead. The oldest
    waiting sample is always taken, so no sample waits forever. At the end of an epoch, micro-batches that no remaining
    sample fits are filled from the next epoch, never from a later one: every sample occurs once in its epoch. The
    samples of a step depend on the steps before it, but not on the rank or the number of ranks. Planning is cheap
    enough that a resumed run replans all earlier steps.
    """

    sizes: Sizes
    budget: Budget
    rates: Callable[[int], Sequence[Rates]]  # step -> rates of all its micro-batches, by accumulation turn, then rank
    kept: KeptCounts
    world: int
    rank: int
    seed: int
    mixture: Mixture | None = None  # None: every sample once per epoch
    cost_of: SampleCost | None = None
    freed: int | None = None  # patches removed per pruned token; see Patches

    def micro_batches(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Sample indices of this rank's micro-batches in `step` (from 0), one tuple for each of its rates."""
        return self._planner.step(step)[self.rank :: self.world]

    @cached_property
    def patches(self) -> Patches:
        """Patches that enter the vision tower, by sample and tokens after pruning."""
        return Patches(self.sizes.patches_S, self.sizes.unpruned(), self.freed)

    @cached_property
    def _planner(self) -> _Planner:
        return _Planner(self)

    def __getstate__(self) -> dict[str, Any]:  # a worker process plans for itself
        return {name: value for name, value in vars(self).items() if name not in ("_planner", "patches")}

    def check(self, rates: Rates, name: Callable[[int], str]) -> None:
        """Raise ValueError if a single sample exceeds the budget at `rates`, the lowest that will be drawn."""
        all_samples = np.arange(len(self.sizes))
        tokens = self.sizes.in_views(all_samples, rates, self.kept)
        cost = self.cost_of(all_samples, tokens) if self.cost_of else None
        in_views, lower = (f" in {len(rates)} views", "lower train.views, ") if len(rates) > 1 else ("", "")
        for resource, load_S, budget, unit in (
            ("token", tokens.sum(0), self.budget.tokens, 1),
            ("patch", self.patches(all_samples, tokens), self.budget.patches, 1),
            ("cost", cost, self.budget.cost, TERA),
        ):
            if budget is not None and load_S is not None and load_S.max() > budget:
                sample, least = name(int(load_S.argmax())), load_S.max() / unit
                raise ValueError(
                    f"train.{resource}_budget={budget / unit:g} is smaller than sample {sample} alone{in_views}: "
                    f"give at least {least:g}, {lower}or cap the sample (data.max_tokens, data.max_frames)"
                )


class _Planner:
    """Plans steps in order. A request for an earlier step restarts from the beginning."""

    def __init__(self, plan: BudgetPlan) -> None:
        rates = plan.rates(0)
        typical = sorted(rates)[len(rates) // 2]
        self.plan = plan
        self.loads = BinLoads(plan.sizes, plan.kept, plan.budget, plan.cost_of, plan.patches, typical=typical)
        self._rewind()

    def _rewind(self) -> None:
        self.next = self.epoch = self.read = 0  # next step; epoch; position in the stream of samples
        self.last: tuple[tuple[int, ...], ...] = ()
        self.waiting = np.zeros((2, 0), dtype=np.int64)  # [(sample, epoch), M], oldest first

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Sample indices of each micro-batch of a step."""
        if step < self.next - 1:
            self._rewind()
        while self.next <= step:
            self.last = self._fill(self.plan.rates(self.next))
            self.next += 1
        return self.last

    def _fill(self, rates: Sequence[Rates]) -> tuple[tuple[int, ...], ...]:
        loads = self.loads.at(rates)
        self._look_ahead((1 / loads.mean_KP[0]).sum() + self.plan.budget.lookahead)
        bin_M = pack(loads, self.waiting[0], self.waiting[1], self.next)
        by_bin = np.argsort(bin_M, kind="stable")
        ends = np.searchsorted(bin_M[by_bin], np.arange(len(rates) + 1)).tolist()
        taken = self.waiting[0, by_bin].tolist()
        batches = tuple(tuple(taken[begin:end]) for begin, end in pairwise(ends))
        assert all(batches), "no sample fits an empty micro-batch: BudgetPlan.check was not called"
        self.waiting = self.waiting[:, bin_M < 0]
        return batches

    def _look_ahead(self, wanted: float) -> None:
        """Read samples from the stream until those waiting weigh as much as `wanted` average samples."""
        share_S = self.loads.share_S
        while (missing := ceil(wanted - share_S[self.waiting[0]].sum())) > 0:
            epoch, offset = divmod(self.read, len(self.plan.sizes))
            new = order(self.plan.mixture or len(self.plan.sizes), self.plan.seed, epoch)[offset : offset + missing]
            self.waiting = np.hstack([self.waiting, np.stack([new, np.full(len(new), epoch)])])
            self.read += len(new)
