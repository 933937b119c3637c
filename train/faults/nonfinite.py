"""What a run does about numbers that are not finite: skip the step, name the samples, and stop before it is ruined.

The gradient norm is the one thing to look at. Every engine reduces it over ranks, so that all decide alike, and a loss
that is not finite makes it so (`nan_grads_if_nonfinite`).
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
from torch import Tensor, nn

from train.metrics.jsonl import append_lines


@dataclass
class Health:
    """Counts what went wrong. `limit`: skipped steps in a row that end the run; `vocabulary`: tokens of the head."""

    engine: Accelerator
    file: Path
    limit: int
    vocabulary: int
    streak: int = 0
    _lowest: float = math.inf  # loss so far
    _warned: bool = False

    def skip(self, step: int, norm: float, batches: Sequence[dict[str, Any]]) -> None:
        """Count a step that was left out, and write down its `batches`, this rank's and the others'."""
        self.streak += 1
        self._write({"step": step, "skipped": True, "batches": gather_object(list(batches))})
        self.engine.print(f"step {step} skipped: gradient norm {norm}; its samples are in {self.file}")

    def check(self, step: int) -> None:
        """Raises ValueError when `limit` steps in a row, up to this one, were left out."""
        if self.streak >= self.limit:
            raise ValueError(
                f"train.max_bad_steps={self.limit}: the loss or gradient of {self.streak} steps in a row, up to step "
                f"{step}, was not finite (samples in {self.file}): lower optim.lr, or check the weights of model.path"
            )

    def look(self, step: int, values: dict[str, float]) -> None:
        """Warns, once, where a report's values are those of a model that has died."""
        loss, norm = values.get("loss", math.nan), values.get("grad_norm", math.nan)
        chance = math.log(self.vocabulary)
        dead = norm == 0 or (loss > 0.98 * chance and self._lowest < 0.9 * chance)
        if dead and not self._warned:
            self._warned = True
            warning = (
                f"the model may have died: gradient norm {norm:.3g}, loss {loss:.3f}, where guessing at random gives "
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
    """`loss`, with a gradient that is not finite wherever the loss is not."""
    return loss * torch.where(loss.isfinite(), 1.0, math.nan)


def finite(values: Sequence[float]) -> list[float | None]:
    """JSON has no NaN: None in its place."""
    return [value if math.isfinite(value) else None for value in values]


def weights_are_finite(engine: Accelerator, task: nn.Module) -> bool:
    """Whether all weights are, over all ranks; each looks at what it holds (under ZeRO 3 its shards)."""
    mine = [getattr(p, "ds_tensor", p).detach().isfinite().all() for p in task.parameters()]
    bad = (~torch.stack([ok.to(engine.device) for ok in mine])).sum()
    return int(engine.reduce(bad, reduction="sum")) == 0
