"""Forecasts the memory that the largest micro-batch needs on one rank, before weights are loaded.

Weights, gradients, optimizer states and activations are computed by formula. Communication buffers, fragmentation and
temporary tensors of the update are not included: `preflight=dry_run` measures them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

from data.batching.plans import BudgetPlan, Plan
from data.batching.sample_cost import Patches
from data.sizes import KeptCounts, Rates, Sizes
from evs.families import spec_of
from evs.losses.fused_head import CHUNK
from evs.methods import Method
from evs.packing import installed
from evs.shared_tower import gathers_features
from train.config import Config
from train.model import base_model
from train.quantize import NF4_BYTES, quantized_layers

PLANNED = 50  # steps of a budgeted plan that are searched for the largest micro-batch
SPARE = 0.95  # share of the free memory that may be used


@dataclass(frozen=True)
class Largest:
    """Upper bounds of the sizes of this rank's micro-batches, and the frames of the longest sample."""

    tokens: int  # that the language model processes, in all views
    text: int  # tokens that are never pruned, including all labelled ones
    patches: int  # those that enter the vision tower
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


def largest(plan: Plan | BudgetPlan, sizes: Sizes, rates: Rates, kept: KeptCounts, freed: int | None = None) -> Largest:
    """Upper bounds at `rates`, the lowest that can be drawn.

    The number of text tokens, and of patches without a patch budget, is the maximum over the first `PLANNED` steps.
    For `freed` see data.batching.sample_cost.Patches.
    """
    samples_S, frames = np.arange(len(sizes)), int(sizes.frames_S.max())
    tokens = sizes.in_views(samples_S, rates, kept)
    patches_S = Patches(sizes.patches_S, sizes.unpruned(), freed)(samples_S, tokens)
    text_S = len(rates) * sizes.fixed_S
    if isinstance(plan, Plan):
        most = min(plan.batch_size, len(sizes))
        decoded, text, patches = (int(np.sort(size_S)[-most:].sum()) for size_S in (tokens.sum(0), text_S, patches_S))
        return Largest(decoded, text, patches, frames)
    batches = [np.array(batch) for step in range(PLANNED) for batch in plan.micro_batches(step)]
    text, patches = (max(int(size_S[batch].sum()) for batch in batches) for size_S in (text_S, patches_S))
    return Largest(plan.budget.tokens, text, plan.budget.patches or patches, frames)


def estimate(
    config: Config,
    model: nn.Module,
    hf_config: Any,
    batch: Largest,
    *,
    world: int,
    device: torch.device,
    methods: Sequence[Method] = (),
) -> Estimate:
    """Peak memory of one of `world` ranks, of which groups of engine.sequence_parallel share a batch.

    `model` may be on the meta device; `device` is where it will be trained. A rank that shares a batch holds its share
    of the activations, and what the pruning `methods` score: pixels or features of the whole batch.
    """
    share = config.engine.sequence_parallel
    unshared = batch
    batch = replace(batch, **{name: -(-getattr(batch, name) // share) for name in ("tokens", "text", "patches")})
    parameters = [(p.numel(), size, p.requires_grad) for p, size in _parameters(config, model)]
    stage = int(config.engine.zero.get("stage", 0)) if config.engine.name.startswith("zero") else None
    trained = sum(n for n, _, is_trained in parameters if is_trained)
    activation_bytes = 2 if config.engine.precision == "bf16" else 4
    scored = [_scored(hf_config, unshared, method, activation_bytes) for method in methods if share > 1]
    shards = [world if stage is not None and stage >= least else 1 for least in (1, 2, 3)]  # by ZeRO stage
    offloads = config.engine.zero if device.type != "cpu" else {}  # offloading from the CPU to the CPU frees nothing
    weights = sum(n * size for n, size, _ in parameters) / shards[2]
    casts = sum(n * activation_bytes for n, size, _ in parameters if size > activation_bytes)  # autocast keeps them
    states = trained * (12 if stage is not None else 2 * max(size for _, size, _ in parameters))
    if config.train.ema is not None:
        states += 4 * trained  # the average of the weights
    logits = min(CHUNK, batch.text * hf_config.get_text_config().vocab_size) * (4 + 4 + activation_bytes)
    return Estimate(
        weights=0 if "offload_param" in offloads else weights + casts,
        gradients=sum(n * size for n, size, is_trained in parameters if is_trained) / shards[1],
        optimizer=0 if "offload_optimizer" in offloads else states / shards[0],
        activations=_activations(config, hf_config, batch) * activation_bytes
        + _pixels(hf_config, batch) * (4 + activation_bytes)
        + _states(config, hf_config, batch)
        + max(scored, default=0)
        + logits,
    )


def _parameters(config: Config, model: nn.Module) -> Iterator[tuple[nn.Parameter, float]]:
    """The parameters with the bytes of one of their values."""
    base = base_model(model)
    layers = quantized_layers(base, spec_of(base.config)).values() if config.model.lora.quantize is not None else ()
    in_4_bits = {id(layer.weight) for layer in layers}
    yield from ((p, NF4_BYTES if id(p) in in_4_bits else p.element_size()) for p in model.parameters())


def _activations(config: Config, hf_config: Any, batch: Largest) -> float:
    """Number of values kept for backward at the peak: of all layers, or of one layer and the inputs of all."""
    spec, text = spec_of(hf_config), hf_config.get_text_config()
    tower, recomputed = spec.tower_shape(hf_config), config.model.recomputed
    layer = batch.tokens * (12 * text.hidden_size + 4 * spec.text_shape(hf_config).mlp_width)
    inputs = 0 if config.train.offload_activations else batch.tokens * text.hidden_size
    language = _tower(layer, inputs, text.num_hidden_layers, "language" in recomputed)
    layer = batch.patches * (12 * tower.width + 4 * tower.mlp_width)
    if "vision" in config.model.freeze or config.model.lora.r is not None:
        return language + layer
    return language + _tower(layer, batch.patches * tower.width, tower.blocks, "vision" in recomputed)


def _scored(hf_config: Any, batch: Largest, method: Method, activation_bytes: int) -> int:
    """Bytes of the whole batch that a method scores: its uint8 pixels, or its features, sent and received."""
    if method.needs == "pixels":
        return _pixels(hf_config, batch)
    levels = 1 + len(getattr(hf_config.vision_config, "deepstack_visual_indexes", ()))
    tokens = batch.patches // spec_of(hf_config).tower_shape(hf_config).merge_size ** 2
    width = levels * hf_config.get_text_config().hidden_size
    return 2 * tokens * width * activation_bytes if gathers_features(method) else 0


def _pixels(hf_config: Any, batch: Largest) -> int:
    """Number of values of all patches before the patch embedding."""
    tower = spec_of(hf_config).tower_shape(hf_config)
    return batch.patches * tower.channels * tower.temporal_patch_size * tower.patch_size**2


def _states(config: Config, hf_config: Any, batch: Largest) -> float:
    """Bytes that transformers' recurrent layers keep in float32; optimized kernels keep almost nothing."""
    spec = spec_of(hf_config)
    text = spec.text_shape(hf_config)
    if not text.recurrent_layers or installed(spec.kernels):
        return 0
    (heads, key, value), chunk = text.state, text.chunk
    per_token = heads * (9 * (key + value) + 4 * chunk + 3.5 * key * value / chunk)
    return 4 * batch.tokens * per_token * (1 if "language" in config.model.recomputed else text.recurrent_layers)


def _tower(layer: float, inputs: float, depth: int, recomputed: bool) -> float:
    return depth * inputs + layer if recomputed else depth * layer


def available(device: torch.device, ranks_here: int) -> float:
    """Bytes available to one rank: free memory of its GPU, or its share of the machine's free memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available / ranks_here  # the page cache counts as available


def report(batch: Largest, estimate: Estimate, free: float) -> str:
    """The sizes of the largest micro-batch and the forecast, in two lines."""
    by_part = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in vars(estimate).items())
    return (
        f"largest micro-batch: {batch.tokens} tokens, {batch.patches} patches; longest clip: {batch.frames} frames\n"
        f"peak memory, GiB a rank: {estimate.total / 2**30:.2f} of {free / 2**30:.2f} ({by_part})"
    )


def check(estimate: Estimate, free: float, config: Config) -> None:
    """Raise ValueError, with a suggestion, if the estimate does not fit into `free` bytes."""
    if estimate.total <= SPARE * free:
        return
    raise ValueError(
        f"the largest micro-batch needs about {estimate.total / 2**30:.1f} GiB a rank and {free / 2**30:.1f} are free: "
        f"{suggestion(estimate, config)} (preflight=off skips this check)"
    )


def suggestion(estimate: Estimate, config: Config) -> str:
    """The change that reduces the largest part most."""
    if estimate.activations == max(vars(estimate).values()):
        return "set model.gradient_checkpointing=true" if not config.model.gradient_checkpointing else budget(config)
    if config.engine.name in ("none", "ddp", "zero1", "zero2"):
        return "use engine=zero3 over more ranks, freeze a tower or train with model.lora.r=64"
    return "use engine=zero3_offload, more ranks, or model.lora.r=64"


def budget(config: Config) -> str:
    """Which setting to lower for a smaller largest micro-batch, for a message."""
    train, data = config.train, config.data
    if train.token_budget is not None:
        return f"lower train.token_budget={train.token_budget}"
    if train.batch_size > 1:
        return f"lower train.batch_size={train.batch_size}"
    limits = f"data.max_pixels={data.max_pixels} or data.max_frames={data.max_frames}"
    return f"lower {limits.replace('=None', '')}"
