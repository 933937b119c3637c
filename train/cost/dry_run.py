"""Dry run: forward and backward of the largest micro-batch before the first step, to measure the memory it needs.

It leaves no trace in the run: random generators are restored, gradients are cleared, and the optimizer does not step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from data.batching.plans import BudgetPlan, Plan
from data.batching.sizes import KeptCounts, Sizes
from train.checkpoint.storage import sharded
from train.collectives import collected
from train.config import Config
from train.cost.memory_forecast import PLANNED, SPARE, budget
from train.faults.error_lines import explained
from train.metrics.memory import Memory
from train.views import Rate, StepRates


@dataclass(frozen=True)
class MicroBatch:
    """Samples of a micro-batch by their index, and where it stands in the plan; `step` is None for none of its own."""

    samples: tuple[int, ...]
    step: int | None = None
    place: int = 0

    def rates(self, rates: StepRates, grids: Sequence[int]) -> tuple[Rate, ...]:
        """One rate a view: those that the plan has filled it for, else the lowest that are drawn."""
        return rates.lowest() if self.step is None else rates.of_batch(self.step, self.place, grids)


@dataclass(frozen=True)
class Measured:
    """Bytes of one rank."""

    peak: float | None  # the most over ranks; None if the system does not report it
    missing_states: int  # of the optimizer, allocated by the first step


def largest_micro_batch(plan: Plan | BudgetPlan, sizes: Sizes, rates: StepRates, kept: KeptCounts) -> MicroBatch:
    """The micro-batch with the most tokens, the same on all ranks.

    Of a plan by number of samples the largest samples together, at the lowest rates; of a budgeted plan the largest of
    its first steps, at its own rates.
    """
    if isinstance(plan, Plan):
        tokens_S = sizes.in_views(np.arange(len(sizes)), rates.lowest(), kept).sum(0)
        return MicroBatch(tuple(np.lexsort((sizes.patches_S, tokens_S))[-plan.batch_size :].tolist()))
    whole, found, most = replace(plan, world=1, rank=0), MicroBatch(()), -1
    for step in range(PLANNED):
        for place, (batch, views) in enumerate(zip(whole.micro_batches(step), rates(step))):
            tokens = int(sizes.in_views(np.array(batch), views, kept).sum())
            if tokens > most:
                found, most = MicroBatch(batch, step, place), tokens
    return found


def dry_run(
    engine: Accelerator, task: nn.Module, optimizer: Any, request: tuple[Any, Any], *, config: Config, memory: Memory
) -> Measured:
    """Forward and backward of `request`, which is what `task` is called with. Every rank must call it.

    Raises ValueError, naming the budget to lower, if memory is full.
    """
    try:
        _forward_and_backward(engine, task, request)
    except (RuntimeError, MemoryError) as error:
        if "memory is full" not in (explained(error) or ""):
            raise
        raise ValueError(
            f"preflight=dry_run: the largest micro-batch does not fit in memory: {budget(config)}"
        ) from error
    finally:
        optimizer.zero_grad()
    peaks = collected([memory.peak()])
    return Measured(None if None in peaks else max(peaks) * 2**30, _missing_states(engine, task, optimizer))


def _forward_and_backward(engine: Accelerator, task: nn.Module, request: tuple[Any, Any]) -> None:
    training, devices = task.training, [engine.device] if engine.device.type == "cuda" else []
    engine.gradient_state._set_sync_gradients(True)
    # DDP must not rebuild its buckets. DeepSpeed clears gradients that are not finite, and does not step.
    with torch.random.fork_rng(devices), nullcontext() if sharded(engine) else engine.no_sync(task):
        task.train()
        engine.backward(task(*request).loss_sum * math.nan)
    task.train(training)


def _missing_states(engine: Accelerator, task: nn.Module, optimizer: Any) -> int:
    """Bytes of the optimizer states that the first step will allocate; DeepSpeed has allocated them already."""
    if sharded(engine) or optimizer.state:
        return 0
    return 2 * sum(p.numel() * p.element_size() for p in task.parameters() if p.requires_grad)


def report(measured: Measured, forecast: float, room: float, config: Config) -> str:
    """One line that compares what was measured with the forecast (bytes). ValueError if it is more than `room`."""
    if measured.peak is None:
        return "dry run of the largest micro-batch: done (this system does not report peak memory)"
    needed = measured.peak + measured.missing_states
    told = f"{needed / 2**30:.2f} GiB a rank, forecast {forecast / 2**30:.2f}, free {room / 2**30:.2f}"
    if needed > SPARE * room:
        raise ValueError(f"preflight=dry_run: the largest micro-batch needs {told}: {budget(config)}")
    return f"dry run of the largest micro-batch, with optimizer states: peak memory {told}"
