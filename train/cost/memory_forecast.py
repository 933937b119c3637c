"""What the largest micro-batch will need of one rank's memory, forecast before any weight is read.

An estimate from shapes; allocators and communication buffers come on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

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

PLANNED = 50  # steps of a budgeted plan that are looked at for what has no bound
SPARE = 0.95  # of the memory that may be used
# Of what comes and goes within a step, the share that glibc's malloc holds on top at the peak, measured by
# `benchmark.py forecast`: blocks below 32 MB are not returned to the system, nor always fit the next request.
RETAINED, RETAINED_ACTIVATIONS = 0.85, 0.2
LEVELS, FLOATS = 3, 12  # bytes of a decoded pixel, and of one that a processor resizes in floating point

Parameters: TypeAlias = Sequence[tuple[int, int, bool]]  # (numbers, bytes of one, whether it is trained)


@dataclass(frozen=True)
class Largest:
    """The most that one micro-batch of this rank holds, and that one sample does of frames and pixels."""

    tokens: int  # read by the language model, in all views
    text: int  # of them, those that no pruning touches; the labelled ones are among them
    patches: int  # that enter the vision tower
    frames: int
    pixels: int = 0  # decoded


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank at the peak, by part."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float = 0.0  # of the engine: buckets, gathered parameters, the update's gradients in float32
    allocator: float = 0.0  # on a CPU: freed by the step and not returned to the system
    decoding: float = 0.0  # on a CPU without data workers: what the pixels of a sample take above all that a step frees

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def largest(plan: Plan | BudgetPlan, sizes: Sizes, rates: Views, kept: KeptCounts, freed: int | None = None) -> Largest:
    """`rates`: the lowest that will be drawn. Bounds, but for text, and patches, that a budget leaves open.

    `freed`: see data.batching.sample_cost.Patches.
    """
    of_sample, everything = (int(sizes.frames_S.max()), int(sizes.pixels_S.max())), np.arange(len(sizes))
    tokens = sizes.in_views(everything, rates, kept)
    patches_S = Patches(sizes.patches_S, sizes.unpruned(), freed)(everything, tokens)
    text_S = len(rates) * sizes.fixed_S
    if isinstance(plan, Plan):
        most = min(plan.batch_size, len(sizes))
        all_tokens, text, patches = (_sum_of_largest(each, most) for each in (tokens.sum(0), text_S, patches_S))
        return Largest(all_tokens, text, patches, *of_sample)
    batches = [np.array(batch) for step in range(PLANNED) for batch in plan.micro_batches(step)]
    text, patches = (max(int(each[batch].sum()) for batch in batches) for each in (text_S, patches_S))
    return Largest(plan.budget.tokens, text, plan.budget.patches or patches, *of_sample)


def _sum_of_largest(costs: np.ndarray, most: int) -> int:
    return int(np.sort(costs)[-most:].sum())


def estimate(
    config: Config, model: nn.Module, hf_config: Any, batch: Largest, *, world: int, device: torch.device
) -> Estimate:
    """`model` may be on the meta device; only its parameters are counted. `device`: where it will be trained."""
    parameters = [(p.numel(), p.element_size(), p.requires_grad) for p in model.parameters()]
    stage = int(config.engine.zero.get("stage", 0)) if config.engine.name.startswith("zero") else None
    trained = sum(n for n, _, wanted in parameters if wanted)
    here = 2 if config.engine.precision == "bf16" else 4  # bytes of an activation
    shared = [world if stage is not None and stage >= least else 1 for least in (1, 2, 3)]
    offloads = config.engine.zero if device.type != "cpu" else {}  # there it moves nothing anywhere
    offloaded = {part: f"offload_{part}" in offloads for part in ("optimizer", "param")}
    weights = sum(n * size for n, size, _ in parameters) / shared[2]
    copies = sum(n * here for n, size, _ in parameters if size > here)  # autocast keeps what it has cast
    states = trained * (12 if stage is not None else 2 * max(size for _, size, _ in parameters))
    if config.train.ema is not None:
        states += 4 * trained  # their average
    parts = Estimate(
        weights=0 if offloaded["param"] else weights + copies,
        gradients=sum(n * size for n, size, wanted in parameters if wanted) / shared[1],
        optimizer=0 if offloaded["optimizer"] else states / shared[0],
        activations=_activations(config, hf_config, batch) * here
        + _pixels(hf_config, batch) * (4 + here)  # normalised in float32, and as the patch embedding keeps them
        + _states(config, hf_config, batch),
        logits=min(CHUNK, batch.text * hf_config.get_text_config().vocab_size) * (4 + 4 + here),
    )
    if config.engine.name == "ddp" and world > 1:
        buckets, passing = parts.gradients, 0.0
    else:
        buckets, passing = _buffers(config.engine.zero, parameters, here, world=world, device=device)
    kept = RETAINED * (copies + parts.gradients + passing) + RETAINED_ACTIVATIONS * parts.activations
    if device.type != "cpu":
        return replace(parts, buffers=buckets + passing)
    freed = parts.gradients + parts.activations + parts.logits + passing
    decoding = 0 if config.data.workers else max(0, _decoded(hf_config, batch) - freed)
    return replace(parts, buffers=buckets + passing, allocator=kept, decoding=decoding)


def _decoded(hf_config: Any, batch: Largest) -> int:
    """Bytes of one sample's media before they are resized: between two steps, so not beside what a step holds."""
    return batch.pixels * (LEVELS if spec_of(hf_config).uint8_pixels else LEVELS + FLOATS)


def _buffers(
    zero: Mapping[str, Any], parameters: Parameters, here: int, *, world: int, device: torch.device
) -> tuple[float, float]:
    """Bytes that DeepSpeed holds besides weights, gradients and states: (as long as it lives, within a step).

    On a CPU a bucket costs what is used of it.
    """
    if not zero:
        return 0, 0
    stage, everything = int(zero["stage"]), sum(n for n, _, _ in parameters)
    trained = sum(n for n, _, wanted in parameters if wanted)
    bucket = float(zero.get("reduce_bucket_size", 5e8))
    buckets = (2 if zero.get("overlap_comm") and stage < 3 else 1) * (
        min(bucket, trained) if device.type == "cpu" else bucket
    )
    gathered = min(everything, float(zero.get("stage3_max_live_parameters", 1e9))) if stage == 3 else 0
    unreduced = min(bucket, trained) * (1 - 1 / world) if stage == 3 else 0  # stage 2 moves them into the bucket
    update = 0 if "offload_optimizer" in zero and device.type != "cpu" else 4 * trained / world  # gradients in float32
    return here * buckets, here * (gathered + unreduced) + update


def _activations(config: Config, hf_config: Any, batch: Largest) -> float:
    """Numbers kept for backward at the peak: every layer's, or its input only and one layer's again."""
    spec, text = spec_of(hf_config), hf_config.get_text_config()
    tower, checkpointed = spec.tower_shape(hf_config), config.model.recomputed
    layer = batch.tokens * (12 * text.hidden_size + 4 * spec.text_shape(hf_config).mlp_width)
    language = _tower(layer, batch.tokens * text.hidden_size, text.num_hidden_layers, "language" in checkpointed)
    layer = batch.patches * (12 * tower.width + 4 * tower.mlp_width)
    frozen = "vision" in config.model.freeze or config.model.lora.r is not None
    seen = layer if frozen else _tower(layer, batch.patches * tower.width, tower.blocks, "vision" in checkpointed)
    return language + seen


def _pixels(hf_config: Any, batch: Largest) -> int:
    """Numbers of all patches before they are embedded."""
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
    again = "language" in config.model.recomputed
    return 4 * batch.tokens * each * (1 if again else text.recurrent_layers)


def _tower(layer: float, inputs: float, depth: int, checkpointed: bool) -> float:
    return depth * inputs + layer if checkpointed else depth * layer


def available(device: torch.device, ranks_here: int) -> float:
    """Bytes that one rank may take: of its device, or its share of the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available / ranks_here  # what files are cached in can be had too


def report(batch: Largest, parts: Estimate, room: float) -> str:
    """Two lines for people."""
    each = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in vars(parts).items())
    return (
        f"largest micro-batch: {batch.tokens} tokens, {batch.patches} patches; longest clip: {batch.frames} frames\n"
        f"peak memory, GiB a rank: {parts.total / 2**30:.2f} of {room / 2**30:.2f} ({each})"
    )


def check(parts: Estimate, room: float, config: Config) -> None:
    """ValueError with a suggestion when it cannot fit."""
    if parts.total <= SPARE * room:
        return
    raise ValueError(
        f"the largest micro-batch needs about {parts.total / 2**30:.1f} GiB a rank and {room / 2**30:.1f} are free: "
        f"{suggestion(parts, config)} (preflight=off tries all the same)"
    )


def suggestion(parts: Estimate, config: Config) -> str:
    """What helps most against the largest part."""
    biggest = max(vars(parts), key=lambda name: vars(parts)[name])
    if biggest in ("activations", "logits"):
        if not config.model.gradient_checkpointing:
            return "set model.gradient_checkpointing=true"
        if config.train.token_budget is None and config.train.batch_size > 1:
            return f"lower train.batch_size={config.train.batch_size}"
        return "lower train.token_budget and train.patch_budget, data.max_frames or data.max_pixels"
    if biggest == "decoding":
        return "lower data.max_frames, or let a process of its own decode: data.workers=1"
    if config.engine.name in ("none", "ddp", "zero1", "zero2"):
        return "use engine=zero3 over more ranks, freeze a tower or train with model.lora.r=64"
    return "use engine=zero3_offload, more ranks, or model.lora.r=64"
