"""The shape of a run: the settings that are saved in every checkpoint and must be equal to resume it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import xxhash
from torch import nn

from evs.families import spec_of
from train.config import Config, LoraConfig
from train.model import base_model

PACKING = 3  # incremented whenever a change of data/batching/bin_packing.py changes the samples of steps
FIXED = ("model", "average", "engine")  # a checkpoint cannot be loaded into another one of these


@dataclass(frozen=True)
class StepSplit:
    """How the micro-batches of a global step are split over data-parallel ranks."""

    ranks: int
    accumulation: int  # micro-batches of a rank and step
    # Values of train.accumulation configured for this global step, the latest last, without derived ones.
    requested: tuple[int, ...]
    sequence: int = 1  # processes that share the micro-batches of a rank

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a global step, over all ranks."""
        return self.ranks * self.accumulation


def split_step(requested: int, ranks: int, saved: dict[str, Any] | None, changes: Sequence[str]) -> StepSplit:
    """The split for a run of `train.accumulation=requested` on `ranks`, resumed from a checkpoint of shape `saved`.

    If the saved run was started with the requested value, its global step is kept, and the accumulation is derived from
    it if `ranks` divides it. Any other value is used unchanged. If `changes` allow another plan, only the latest value
    of the saved run keeps its global step.
    """
    if saved is None:
        return StepSplit(ranks, requested, (requested,))
    micro_batches, earlier = saved["plan"]["places"], _requested_by(saved["world"], ranks, requested)
    keep = requested in (earlier[-1:] if "plan" in changes else earlier) and micro_batches % ranks == 0
    accumulation = micro_batches // ranks if keep else requested
    same_step = [value for value in earlier if value != requested] if accumulation * ranks == micro_batches else []
    return StepSplit(ranks, accumulation, (*same_step, requested))


def _requested_by(world: dict[str, Any], ranks: int, requested: int) -> list[int]:
    """The accumulations configured for the saved run. Older checkpoints, which do not list them, accept any value on
    another number of ranks."""
    return world.get("requested", [world["accumulation"]] if world["ranks"] == ranks else [requested])


def shape_of(config: Config, split: StepSplit, empty: nn.Module) -> dict[str, Any]:
    """All settings that determine samples, rates, losses and updates, except the data and the optimizer's settings.

    The split of a global step over ranks is under `world` and may change.
    """
    train, data = config.train, config.data
    shape = {
        "seed": config.seed,
        "plan": {"places": split.micro_batches, "batch_size": train.batch_size}
        | {key: getattr(train, key) for key in ("token_budget", "patch_budget", "cost_budget", "lookahead")}
        | ({"packing": PACKING} if train.token_budget is not None else {}),
        "rates": {**config.rate, "levels": train.rate_levels} | ({"per_video": True} if train.rate_per_video else {}),
        "views": {"views": train.views, "anchor": train.anchor_rate} if train.views > 1 else None,
        "distill": asdict(train.distill) if train.distill.weight or train.distill.base_weight else None,
        "method": {**config.method, "scheme": config.model.scheme},
        "frames": {key: getattr(data, key) for key in FRAMES},
        "model": {"weights": _fingerprint_of(empty), "freeze": sorted(config.model.freeze)}
        | {"lora": _enabled(config.model.lora, empty) if config.model.lora.r is not None else None},
        "average": train.ema,
        "engine": {"state": _state(config.engine.name), "precision": config.engine.precision},
        "world": asdict(split),
    }
    return json.loads(json.dumps(shape))  # with the types that reading a manifest gives


def _enabled(lora: LoraConfig, empty: nn.Module) -> dict[str, Any]:
    """LoRA's settings without disabled features, which older checkpoints do not list, and with a family's targets."""
    targets = lora.targets or spec_of(base_model(empty).config).lora_targets
    return {key: value for key, value in asdict(lora).items() if value is not False and value is not None} | {
        "targets": targets
    }


FRAMES = ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels", "max_tokens")


def _state(engine: str) -> str:
    """The format of the engine's state: none and ddp share one, and so do ZeRO stages with and without offload."""
    return {"none": "torch", "ddp": "torch"}.get(engine, engine.removesuffix("_offload"))


def _fingerprint_of(model: nn.Module) -> str:
    named = sorted((name, tuple(p.shape), p.requires_grad) for name, p in model.named_parameters())
    return xxhash.xxh3_64(repr(named).encode()).hexdigest()


def check_same(then: dict[str, Any], now: dict[str, Any], changes: Sequence[str], checkpoint: str) -> None:
    """Raise ValueError, naming the differences and what allows them, if the shapes `then` and `now` differ."""
    keys = [key for key in now if key != "world" and then.get(key) != now[key] and key not in changes]
    if not keys:
        return
    differences = "; ".join(text for key in keys for text in _differences(key, then.get(key), now[key]))
    if fixed := [key for key in keys if key in FIXED]:
        remedy = f"the saved state cannot be loaded into another {' or '.join(fixed)}: give another run_dir"
    else:
        allowing = f"resume_changes=[{','.join(sorted({*changes, *keys}))}]"
        remedy = f"{_keeping_step(then, now)}give another run_dir, or allow it with {allowing}"
    raise ValueError(f"resuming {checkpoint} would be another run ({differences}): {remedy}")


def _keeping_step(then: dict[str, Any], now: dict[str, Any]) -> str:
    """How to keep the saved global step, for a message; empty if it is kept."""
    micro_batches, ranks = then["plan"]["places"], now["world"]["ranks"]
    if micro_batches == now["plan"]["places"]:
        return ""
    if micro_batches % ranks:
        return f"start a number of ranks that divides {micro_batches}, "
    return f"keep the global step with train.accumulation={micro_batches // ranks}, "


def _differences(key: str, then: Any, now: Any) -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for name in sorted({*then, *now}):
            if then.get(name) != now.get(name):
                yield from _differences(f"{key}.{name}", then.get(name), now.get(name))
    else:
        yield f"{key} was {then}, is {now}"
