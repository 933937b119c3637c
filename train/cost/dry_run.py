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
from data.sizes import KeptCounts, Sizes
from train.checkpoint.storage import sharded
from train.collectives import collected
from train.config import Config
from train.cost.memory_forecast import PLANNED, SPARE, budget
from train.cost.peak_memory import Memory
from train.error_lines import explained
from train.views import Rate, StepRates


@dataclass(frozen=True)
class MicroBatch:
    """The indices of a micro-batch's samples, and its position in the plan; `step` is None outside the plan."""

    samples: tuple[int, ...]
    step: int | None = None
    index: int = 0  # within the global step

    def rates(self, rates: StepRates, grids: Sequence[int]) -> tuple[Rate, ...]:
        """The rate of each view: those that the plan filled it for, or the lowest that can be drawn."""
        return rates.lowest() if self.step is None else rates.of_batch(self.step, self.index, grids)


@dataclass(frozen=True)
class Measured:
    """Bytes of one rank."""

    peak: float | None  # maximum over ranks; None if the system does not report it
    missing_states: int  # optimizer states, which the first step will allocate


def largest_micro_batch(plan: Plan | BudgetPlan, sizes: Sizes, rates: StepRates, kept: KeptCounts) -> MicroBatch:
    """The micro-batch with the most tokens, the same on all ranks.

    Without a budget, it consists of the largest samples, at the lowest rates. With a budget, it is the largest of the
    first `PLANNED` steps, at its own rates.
    """
    if isinstance(plan, Plan):
        tokens_S = sizes.in_views(np.arange(len(sizes)), rates.lowest(), kept).sum(0)
        return MicroBatch(tuple(np.lexsort((sizes.patches_S, tokens_S))[-plan.batch_size :].tolist()))
    global_plan, result, most = replace(plan, world=1, rank=0), MicroBatch(()), -1
    for step in range(PLANNED):
        for index, (batch, views) in enumerate(zip(global_plan.micro_batches(step), rates(step))):
            tokens = int(sizes.in_views(np.array(batch), views, kept).sum())
            if tokens > most:
                result, most = MicroBatch(batch, step, index), tokens
    return result


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


def report(measured: Measured, forecast: float, free: float, config: Config) -> str:
    """One line that compares the measured memory with the forecast, both in bytes. ValueError if it exceeds `free`."""
    if measured.peak is None:
        return "dry run of the largest micro-batch: done (this system does not report peak memory)"
    needed = measured.peak + measured.missing_states
    figures = f"{needed / 2**30:.2f} GiB a rank, forecast {forecast / 2**30:.2f}, free {free / 2**30:.2f}"
    if needed > SPARE * free:
        raise ValueError(f"preflight=dry_run: the largest micro-batch needs {figures}: {budget(config)}")
    return f"dry run of the largest micro-batch, with optimizer states: peak memory {figures}"
