"""The settings of a benchmark of models, and training steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from scripts.bench import models
from train.config import ModelConfig
from train.metrics.meters import Meter
from train.model import fit_for_training
from train.task import TrainRequest

FROZEN: dict[str, tuple[str, ...]] = {"frozen": ("vision",), "trained": ()}
EXTRAS = ("stock", "views", "memory", "mixed")


@dataclass(frozen=True)
class Setting:
    """The settings that all variants of a benchmark share."""

    shape: models.Shape
    rates: Sequence[float]
    rounds: int
    device: torch.device
    dtype: torch.dtype
    attention: str
    checkpointing: bool = False  # recompute activations
    compile: bool = False
    towers: Sequence[str] = tuple(FROZEN)
    extras: Sequence[str] = EXTRAS
    tokens: int | None = None  # video tokens of a prefill; None: four times the shape's

    def model(self) -> Any:
        return models.build_model(self.shape, self.device, self.dtype, self.attention)

    def trained(self, frozen: tuple[str, ...]) -> Any:
        """A model prepared for training as in train/run.py."""
        return fit_for_training(self.model(), self.training(frozen))

    def training(self, frozen: tuple[str, ...], checkpointing: bool | None = None) -> ModelConfig:
        recompute = self.checkpointing if checkpointing is None else checkpointing
        return ModelConfig(freeze=list(frozen), gradient_checkpointing=recompute, compile=self.compile)

    def counted(self, frozen: tuple[str, ...]) -> dict[str, Any]:
        """Arguments of the cost model for a step with these frozen parts."""
        return {"frozen": frozen, "recomputed": self.training(frozen).recomputed}


def our_step(task: Any, batch: Any, *rates: float, after: Callable[[], Any] | None = None) -> Callable[[], None]:
    """Forward and backward of a view at each of the rates, then `after`, which by default drops the gradients."""
    return partial(run_step, partial(task, batch, TrainRequest(rates)), after or task.zero_grad)


def run_step(forward: Callable[[], Any], after: Callable[[], Any], meter: Meter | None = None) -> None:
    out = forward()
    with meter.span("backward") if meter else nullcontext():
        (out.loss_sum / out.targets).backward()
    after()


def stock_step(
    model: Any, inputs: dict[str, torch.Tensor], after: Callable[[], Any] | None = None
) -> Callable[[], None]:
    def run() -> None:
        model(**inputs).loss.backward()
        (after or model.zero_grad)()

    return run


def build_optimizer(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)


def updating(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return update
