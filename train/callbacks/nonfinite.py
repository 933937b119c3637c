"""Handling of non-finite losses and gradients: skip the step, list its samples, and end the run after several in a row.

Only the gradient norm is checked. Every engine reduces it over ranks, so all ranks take the same decision, and a
non-finite loss makes it non-finite (`nan_grads_if_nonfinite`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from train.callbacks.base import Callback, StepResult
from train.distributed import ONE_PROCESS, Mesh
from train.jsonl import append_lines


@dataclass
class Health(Callback):
    """Counts skipped steps and warns of a model that has stopped learning.

    `limit` consecutive skipped steps end the run. `vocabulary` is the number of tokens that the head distinguishes.
    """

    engine: Accelerator
    file: Path
    limit: int
    vocabulary: int
    streak: int = 0
    mesh: Mesh = ONE_PROCESS
    _lowest: float = math.inf  # lowest loss reported so far
    _warned: bool = False

    def after_step(self, result: StepResult) -> None:
        """Count a skipped step, and write the samples of all ranks to the file."""
        if math.isfinite(result.norm):
            self.streak = 0
            return
        self.streak += 1
        columns = result.rates, finite(torch.stack([*result.losses]).tolist()), [b.ids for b in result.data.batches]
        rows = [dict(zip(("rates", "loss", "samples"), row)) for row in zip(*columns)]
        self._write({"step": result.step, "skipped": True, "batches": gather_object(rows if self.mesh.leads else [])})
        self.engine.print(f"step {result.step} skipped: gradient norm {result.norm}; its samples are in {self.file}")

    def check_streak(self, step: int) -> None:
        """Raise ValueError if `limit` consecutive steps, up to this one, were skipped."""
        if self.streak >= self.limit:
            raise ValueError(
                f"train.max_bad_steps={self.limit}: the loss or gradient of {self.streak} steps in a row, up to step "
                f"{step}, was not finite (samples in {self.file}): lower optim.lr, or check the weights of model.path"
            )

    def after_report(self, step: int, values: dict[str, float]) -> None:
        """Warn once if reported values suggest that the model no longer learns."""
        loss, norm = values.get("loss", math.nan), values.get("grad_norm", math.nan)
        chance = math.log(self.vocabulary)
        dead = norm == 0 or (loss > 0.98 * chance and self._lowest < 0.9 * chance)
        if dead and not self._warned:
            self._warned = True
            warning = (
                f"the model may have died: gradient norm {norm:.3g}, loss {loss:.3f}; guessing at random gives "
                f"ln({self.vocabulary}) = {chance:.3f}"
            )
            self._write({"step": step, "warning": warning})
            self.engine.print(f"step {step}: {warning}")
        if math.isfinite(loss):
            self._lowest = min(self._lowest, loss)

    def _write(self, row: dict[str, Any]) -> None:
        if self.engine.is_main_process:
            append_lines(self.file, [row])


def nan_grads_if_nonfinite(loss: Tensor) -> Tensor:
    """Return `loss` unchanged, but with NaN gradients if it is not finite."""
    return loss * torch.where(loss.isfinite(), 1.0, math.nan)


def finite(values: Sequence[float]) -> list[float | None]:
    """The values with None for those that are not finite, which JSON cannot hold."""
    return [value if math.isfinite(value) else None for value in values]
