"""Features of the training loop, such as metrics and checks, as callbacks with named hooks.

A new feature is a subclass, listed in `train.build.assemble`; the loop stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from data.loader import Step
from data.types import Batch
from train.task import StepOutput, TrainRequest
from train.views import Rate


@dataclass(frozen=True)
class MicroBatch:
    """One rank's micro-batch after its forward and backward pass."""

    step: int  # from 1
    index: int  # within the global step
    batch: Batch
    request: TrainRequest
    output: StepOutput


@dataclass(frozen=True)
class StepResult:
    """One rank's view of an optimizer step, which all ranks skip if the gradient norm is not finite."""

    step: int  # from 1
    data: Step
    rates: Sequence[tuple[Rate, ...]]  # of each micro-batch, one per view
    losses: Sequence[Tensor]  # mean loss per labelled token of each micro-batch
    norm: float  # of the gradients, over all ranks


class Callback:
    """Hooks that the loop calls on every rank, in the order of the callbacks. Each does nothing by default."""

    def after_micro_batch(self, done: MicroBatch) -> None:
        """After the backward pass of a micro-batch."""

    def after_step(self, result: StepResult) -> None:
        """After the optimizer has taken or skipped a step."""

    def after_report(self, step: int, values: dict[str, float]) -> None:
        """After the metrics since the last report were reduced over ranks and written."""
