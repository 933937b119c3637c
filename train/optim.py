"""Parameter groups by tower, AdamW, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from evs.families import FamilySpec
from train.config import TOWERS, OptimConfig


def trained_towers(model: nn.Module, spec: FamilySpec) -> set[str]:
    """The towers with a trained parameter, their own or LoRA's."""
    return {spec.group_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}


def freeze(model: nn.Module, spec: FamilySpec, towers: Collection[str]) -> None:
    """Take the parameters of `towers` out of training, and those that no server would read."""
    for name, parameter in model.named_parameters():
        if spec.group_of(name) in towers or any(part in name for part in spec.untrained):
            parameter.requires_grad_(False)


def parameter_groups(model: nn.Module, spec: FamilySpec, config: OptimConfig) -> list[dict[str, Any]]:
    """One group per tower and weight decay, with the peak learning rate as `peak_lr`; no decay on vectors."""
    peak = {"vision": config.vision_lr, "merger": config.merger_lr, "language": config.lr}
    groups = []
    for tower in TOWERS:
        named = [p for n, p in model.named_parameters() if p.requires_grad and spec.group_of(n) == tower]
        lr = config.lr if peak[tower] is None else peak[tower]
        for params, decay in (
            ([p for p in named if p.ndim > 1], config.weight_decay),
            ([p for p in named if p.ndim <= 1], 0.0),
        ):
            if params:
                groups.append({"params": params, "lr": lr, "peak_lr": lr, "weight_decay": decay, "tower": tower})
    return groups


def build_optimizer(model: nn.Module, spec: FamilySpec, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters, fused: CPUs have it too, and the engine may yet move the model to a GPU."""
    groups = parameter_groups(model, spec, config)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def lr_factor(step: int, steps: int, config: OptimConfig) -> float:
    """Linear warm-up, then a cosine from 1 to `final_lr`; a function of the step, so a resumed run needs no state."""
    warmup = config.warmup * steps if config.warmup < 1 else config.warmup
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Scale every group from its peak; the largest learning rate now in force."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return max(group["lr"] for group in optimizer.param_groups)
