"""Forecast of the memory that the largest micro-batch needs on one rank, made before any weight is read.

Weights, gradients, optimizer states and activations by formula. Communication buffers, the allocator's fragments and
temporaries of the update come on top: `preflight=dry_run` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

from data.batching.plans import BudgetPlan, Plan
from data.batching.sample_cost import Patches
from data.batching.sizes import KeptCounts, Sizes, Views
from evs.families import spec_of
from evs.packing import installed
from train.config import Config
from train.losses.head import CHUNK

PLANNED = 50  # steps of a budgeted plan that are searched for the largest micro-batch
SPARE = 0.95  # share of the free memory that may be used


@dataclass(frozen=True)
class Largest:
    """The most that one micro-batch of this rank holds, and the frames of the longest sample."""

    tokens: int  # that the language model reads, in all views
    text: int  # of them, those that are never pruned; the labelled ones are among them
    patches: int  # that enter the vision tower
    frames: int


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank at the peak, by part."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def largest(plan: Plan | BudgetPlan, sizes: Sizes, rates: Views, kept: KeptCounts, freed: int | None = None) -> Largest:
    """Upper bounds at `rates`, the lowest that will be drawn; of text, and of patches without a budget, the most in the
    first steps of the plan. `freed`: see data.batching.sample_cost.Patches."""
    everything, frames = np.arange(len(sizes)), int(sizes.frames_S.max())
    tokens = sizes.in_views(everything, rates, kept)
    patches_S = Patches(sizes.patches_S, sizes.unpruned(), freed)(everything, tokens)
    text_S = len(rates) * sizes.fixed_S
    if isinstance(plan, Plan):
        most = min(plan.batch_size, len(sizes))
        read, text, patches = (int(np.sort(each)[-most:].sum()) for each in (tokens.sum(0), text_S, patches_S))
        return Largest(read, text, patches, frames)
    batches = [np.array(batch) for step in range(PLANNED) for batch in plan.micro_batches(step)]
    text, patches = (max(int(each[batch].sum()) for batch in batches) for each in (text_S, patches_S))
    return Largest(plan.budget.tokens, text, plan.budget.patches or patches, frames)


def estimate(
    config: Config, model: nn.Module, hf_config: Any, batch: Largest, *, world: int, device: torch.device
) -> Estimate:
    """`model` may be on the meta device: only its parameters are counted. `device`: where it will be trained."""
    parameters = [(p.numel(), p.element_size(), p.requires_grad) for p in model.parameters()]
    stage = int(config.engine.zero.get("stage", 0)) if config.engine.name.startswith("zero") else None
    trained = sum(n for n, _, wanted in parameters if wanted)
    here = 2 if config.engine.precision == "bf16" else 4  # bytes of an activation
    shared = [world if stage is not None and stage >= least else 1 for least in (1, 2, 3)]
    offloads = config.engine.zero if device.type != "cpu" else {}  # offloading from the CPU to the CPU frees nothing
    weights = sum(n * size for n, size, _ in parameters) / shared[2]
    casts = sum(n * here for n, size, _ in parameters if size > here)  # autocast keeps them
    states = trained * (12 if stage is not None else 2 * max(size for _, size, _ in parameters))
    if config.train.ema is not None:
        states += 4 * trained  # the average of the weights
    logits = min(CHUNK, batch.text * hf_config.get_text_config().vocab_size) * (4 + 4 + here)
    return Estimate(
        weights=0 if "offload_param" in offloads else weights + casts,
        gradients=sum(n * size for n, size, wanted in parameters if wanted) / shared[1],
        optimizer=0 if "offload_optimizer" in offloads else states / shared[0],
        activations=_activations(config, hf_config, batch) * here
        + _pixels(hf_config, batch) * (4 + here)
        + _states(config, hf_config, batch)
        + logits,
    )


def _activations(config: Config, hf_config: Any, batch: Largest) -> float:
    """Numbers kept for backward at the peak: of every layer, or its input only and one layer recomputed."""
    spec, text = spec_of(hf_config), hf_config.get_text_config()
    tower, recomputed = spec.tower_shape(hf_config), config.model.recomputed
    layer = batch.tokens * (12 * text.hidden_size + 4 * spec.text_shape(hf_config).mlp_width)
    language = _tower(layer, batch.tokens * text.hidden_size, text.num_hidden_layers, "language" in recomputed)
    layer = batch.patches * (12 * tower.width + 4 * tower.mlp_width)
    if "vision" in config.model.freeze or config.model.lora.r is not None:
        return language + layer
    return language + _tower(layer, batch.patches * tower.width, tower.blocks, "vision" in recomputed)


def _pixels(hf_config: Any, batch: Largest) -> int:
    """Numbers of all patches before they are embedded: normalised in float32, and as the patch embedding keeps them."""
    tower = spec_of(hf_config).tower_shape(hf_config)
    return batch.patches * tower.channels * tower.temporal_patch_size * tower.patch_size**2


def _states(config: Config, hf_config: Any, batch: Largest) -> float:
    """Bytes that the library's own recurrence keeps, in float32 and chunks; kernels keep next to nothing."""
    spec = spec_of(hf_config)
    text = spec.text_shape(hf_config)
    if not text.recurrent_layers or installed(spec.kernels):
        return 0
    (heads, key, value), chunk = text.state, text.chunk
    each = heads * (9 * (key + value) + 4 * chunk + 3.5 * key * value / chunk)
    return 4 * batch.tokens * each * (1 if "language" in config.model.recomputed else text.recurrent_layers)


def _tower(layer: float, inputs: float, depth: int, recomputed: bool) -> float:
    return depth * inputs + layer if recomputed else depth * layer


def available(device: torch.device, ranks_here: int) -> float:
    """Bytes that one rank may take: what is free on its GPU, or its share of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available / ranks_here  # the page cache counts as available


def report(batch: Largest, parts: Estimate, room: float) -> str:
    """Two lines for people."""
    each = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in vars(parts).items())
    return (
        f"largest micro-batch: {batch.tokens} tokens, {batch.patches} patches; longest clip: {batch.frames} frames\n"
        f"peak memory, GiB a rank: {parts.total / 2**30:.2f} of {room / 2**30:.2f} ({each})"
    )


def check(parts: Estimate, room: float, config: Config) -> None:
    """ValueError with a suggestion if it cannot fit."""
    if parts.total <= SPARE * room:
        return
    raise ValueError(
        f"the largest micro-batch needs about {parts.total / 2**30:.1f} GiB a rank and {room / 2**30:.1f} are free: "
        f"{suggestion(parts, config)} (preflight=off tries all the same)"
    )


def suggestion(parts: Estimate, config: Config) -> str:
    """What helps most against the largest part."""
    if parts.activations == max(vars(parts).values()):
        return "set model.gradient_checkpointing=true" if not config.model.gradient_checkpointing else budget(config)
    if config.engine.name in ("none", "ddp", "zero1", "zero2"):
        return "use engine=zero3 over more ranks, freeze a tower or train with model.lora.r=64"
    return "use engine=zero3_offload, more ranks, or model.lora.r=64"


def budget(config: Config) -> str:
    """The budget that bounds the largest micro-batch, and what to do about it."""
    train, data = config.train, config.data
    if train.token_budget is not None:
        return f"lower train.token_budget={train.token_budget}"
    if train.batch_size > 1:
        return f"lower train.batch_size={train.batch_size}"
    limits = f"data.max_pixels={data.max_pixels} or data.max_frames={data.max_frames}"
    return f"lower {limits.replace('=None', '')}"
