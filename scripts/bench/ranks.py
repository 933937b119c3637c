"""Step times of two ranks, in processes of one thread each, whose micro-batches have equal modelled cost.

Both run forward and backward for the steps of one plan, with clips of 4 to 64 frames at rates from [0, .9]. They wait
for each other before every step and exchange nothing. On a busy machine only processor seconds are meaningful.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from data.batching.plans import Budget, BudgetPlan
from data.collate import collate
from data.progress import progress_bar
from data.sizes import Rates, SampleSize, gather
from data.types import Encoding, ModelInputs
from evs import FrameDelta, Uniform
from scripts.bench import models
from scripts.bench.timing import table
from train.cost import operations as cost
from train.cost.plans import kept_counts
from train.ranges import number
from train.task import TrainRequest
from train.views import StepRates

RANKS, SAMPLES = 2, 400
KEPT = partial(kept_counts, FrameDelta())


@dataclass
class Options:
    shape: str = "small"  # one of scripts/bench/models.py
    steps: int = number(20, least=1)  # timed, after one that warms up
    tokens: int = number(2048, least=2048)  # largest number of tokens of a micro-batch, as train.token_budget
    out: str | None = None  # JSON file for the figures


def ranks(options: Options) -> dict[str, Any]:
    """Seconds of every step on each rank; the relative difference between ranks in seconds and in modelled cost."""
    context = get_context("spawn")
    results, barrier = context.SimpleQueue(), context.Barrier(RANKS)
    processes = [context.Process(target=_steps, args=(options, rank, barrier, results)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    by_rank = dict(results.get() for _ in processes)
    for process in processes:
        process.join()
    result = {}
    for index, name in enumerate(("seconds", "processor seconds", "modelled cost")):
        values_TR = np.array([by_rank[rank][index] for rank in range(RANKS)]).T
        between, sums = np.ptp(values_TR, axis=1) / values_TR.mean(1), values_TR.sum(0)
        result[name] = {"mean": between.mean(), "worst": between.max(), "of_sums": np.ptp(sums) / sums.mean()}
        result[name] = {key: float(value) for key, value in result[name].items()} | {"steps": values_TR.tolist()}
    rows = [(name, *(f"{spread[key]:.4f}" for key in ("mean", "worst", "of_sums"))) for name, spread in result.items()]
    print(f"{options.steps} steps\n{table(('ranks differ in', 'mean', 'worst', 'sum over steps'), rows)}")
    return result


def _steps(options: Options, rank: int, barrier: Any, results: Any) -> None:
    """Run by each rank: put seconds, processor seconds and modelled cost of every step into `results`."""
    torch.set_num_threads(1)
    shape = models.build_shape(options.shape)
    task = models.our_task(models.build_model(shape, torch.device("cpu"), torch.float32))
    grids, plan = _plan(shape, options.tokens, rank)
    rows = []
    for step in progress_bar(range(-1, options.steps), unit="step", disable=bool(rank)):  # one to warm up
        (samples,), rates = plan.micro_batches(max(step, 0)), plan.rates(max(step, 0))[rank]
        batch = collate([_encoding(shape, grids[sample], sample) for sample in samples], filler_token=models.WORDS)
        barrier.wait()
        begin, busy = time.perf_counter(), time.process_time()
        task(batch, TrainRequest((rates[0],))).loss_sum.backward()
        rows.append((time.perf_counter() - begin, time.process_time() - busy, _cost(plan, samples, rates)))
        task.zero_grad()
    results.put((rank, list(zip(*rows[1:]))))


def _cost(plan: BudgetPlan, samples: Sequence[int], rates: Rates) -> float:
    assert plan.cost_of is not None
    return float(plan.cost_of(np.array(samples), plan.sizes.in_views(np.array(samples), rates, KEPT)).sum())


def _plan(shape: models.Shape, tokens: int, rank: int) -> tuple[list[tuple[int, int, int]], BudgetPlan]:
    """The grids of the clips in merged tokens, and the plan of their steps."""
    random = np.random.default_rng(0)
    grids = [(int(random.integers(2, 33)), int(random.choice([4, 6])), 6) for _ in range(SAMPLES)]
    text = models.PROMPT + models.ANSWER
    sizes = gather(
        SampleSize(text, ((t, h * w),), 4 * t * h * w, 2 * t, models.ANSWER, t * (4 * h * w) ** 2) for t, h, w in grids
    )
    price = cost.sample_cost(models.model_config(shape), sizes)
    allowed = cost.budget(price, sizes.in_views(np.arange(SAMPLES), (0.0,), KEPT), tokens)
    rates = StepRates(Uniform(0.0, 0.9), RANKS, 0, levels=64)
    return grids, BudgetPlan(sizes, Budget(tokens, cost=allowed), rates, KEPT, RANKS, rank, 0, cost_of=price)


def _encoding(shape: models.Shape, grid: tuple[int, int, int], seed: int) -> Encoding:
    batch = models.build_batch(replace(shape, clips=1, grid=grid), seed)
    return Encoding(id=str(seed), **{field.name: getattr(batch, field.name) for field in fields(ModelInputs)})
