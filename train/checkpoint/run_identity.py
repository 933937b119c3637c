"""What makes two runs the same run: written into every checkpoint, compared when one is resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import xxhash
from torch import nn

from train.config import Config, LoraConfig

PACKING = 2  # raised whenever data/batching/bin_packing.py would fill the same steps with other samples
FIXED = ("model", "average", "engine")  # a checkpoint cannot be loaded into another one of these


def shape_of(config: Config, world: int, empty: nn.Module) -> dict[str, Any]:
    """Everything that samples, rates, losses and updates follow from, but for the data and the optimizer's settings.

    What only says how a global step is split over ranks stands under `world`, and may change.
    """
    train, data = config.train, config.data
    shape = {
        "seed": config.seed,
        "plan": {"places": world * train.accumulation, "batch_size": train.batch_size}
        | {key: getattr(train, key) for key in ("token_budget", "patch_budget", "cost_budget", "lookahead")}
        | ({"packing": PACKING} if train.token_budget is not None else {}),
        "rates": {**config.rate, "levels": train.rate_levels} | ({"per_video": True} if train.rate_per_video else {}),
        "views": {"views": train.views, "anchor": train.anchor_rate} if train.views > 1 else None,
        "distill": asdict(train.distill) if train.distill.weight or train.distill.base_weight else None,
        "method": {**config.method, "scheme": config.model.scheme},
        "frames": {key: getattr(data, key) for key in FRAMES},
        "model": {"weights": _fingerprint_of(empty), "freeze": sorted(config.model.freeze)}
        | {"lora": _given(config.model.lora) if config.model.lora.r is not None else None},
        "average": train.ema,
        "engine": {"state": _state(config.engine.name), "precision": config.engine.precision},
        "world": {"ranks": world, "accumulation": train.accumulation},
    }
    return json.loads(json.dumps(shape))  # as it will be read


def _given(lora: LoraConfig) -> dict[str, Any]:
    """Without what is off, which older checkpoints do not name."""
    return {key: value for key, value in asdict(lora).items() if value is not False}


FRAMES = ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels", "max_tokens")


def _state(engine: str) -> str:
    """none and ddp write the same files, and so do stages of ZeRO with and without offload."""
    return {"none": "torch", "ddp": "torch"}.get(engine, engine.removesuffix("_offload"))


def _fingerprint_of(model: nn.Module) -> str:
    named = sorted((name, tuple(p.shape), p.requires_grad) for name, p in model.named_parameters())
    return xxhash.xxh3_64(repr(named).encode()).hexdigest()


def check_same(then: dict[str, Any], now: dict[str, Any], changes: Sequence[str], checkpoint: str) -> None:
    """Raises ValueError where resuming would silently be another run, naming what differs and what would allow it."""
    keys = [key for key in now if key != "world" and then.get(key) != now[key] and key not in changes]
    if not keys:
        return
    found = "; ".join(text for key in keys for text in _differences(key, then.get(key), now[key]))
    if fixed := [key for key in keys if key in FIXED]:
        remedy = f"what was saved cannot be loaded into another {' or '.join(fixed)}: give another run_dir"
    else:
        remedy = f"give another run_dir, or allow it with resume_changes=[{','.join(sorted({*changes, *keys}))}]"
    raise ValueError(f"resuming {checkpoint} would be another run ({found}): {remedy}")


def _differences(key: str, then: Any, now: Any) -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for name in sorted({*then, *now}):
            if then.get(name) != now.get(name):
                yield from _differences(f"{key}.{name}", then.get(name), now.get(name))
    else:
        yield f"{key} was {then}, is {now}"


def with_global_batch(config: Config, then: dict[str, Any], world: int) -> Config:
    """The configuration with as many micro-batches a rank as keep a saved run's global step on `world` ranks, where
    they are not the saved run's number and it can be divided so."""
    places = then["plan"]["places"]
    if then["world"]["ranks"] == world or config.train.accumulation * world == places or places % world:
        return config
    return replace(config, train=replace(config.train, accumulation=places // world))
