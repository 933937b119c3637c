"""What makes two runs the same run: written into every checkpoint, compared when one is resumed."""

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

PACKING = 3  # raised whenever data/batching/bin_packing.py would fill the same steps with other samples
FIXED = ("model", "average", "engine")  # a checkpoint cannot be loaded into another one of these


@dataclass(frozen=True)
class StepSplit:
    """How the micro-batches of a global step are split over ranks."""

    ranks: int
    accumulation: int  # micro-batches of a rank and step
    # Values of train.accumulation that this global step was requested by, the latest last: not the derived ones.
    requested: tuple[int, ...]

    @property
    def places(self) -> int:
        """Micro-batches of a global step, over all ranks."""
        return self.ranks * self.accumulation


def split_step(requested: int, ranks: int, saved: dict[str, Any] | None, changes: Sequence[str]) -> StepSplit:
    """The split for a run of `train.accumulation=requested` on `ranks`, resumed from a checkpoint of shape `saved`.

    A value that the saved run was started with means its global step again, on any number of ranks that divides it.
    Any other value is taken as it is, and so is any but the latest one if `changes` allow another plan.
    """
    if saved is None:
        return StepSplit(ranks, requested, (requested,))
    places, known = saved["plan"]["places"], _requested_by(saved["world"], ranks, requested)
    kept = requested in (known[-1:] if "plan" in changes else known) and places % ranks == 0
    accumulation = places // ranks if kept else requested
    same = [value for value in known if value != requested] if accumulation * ranks == places else []
    return StepSplit(ranks, accumulation, (*same, requested))


def _requested_by(world: dict[str, Any], ranks: int, requested: int) -> list[int]:
    """The saved run's requests. Checkpoints that do not name them adapted any request to another number of ranks."""
    return world.get("requested", [world["accumulation"]] if world["ranks"] == ranks else [requested])


def shape_of(config: Config, split: StepSplit, empty: nn.Module) -> dict[str, Any]:
    """Everything that samples, rates, losses and updates follow from, but for the data and the optimizer's settings.

    What only says how a global step is split over ranks stands under `world`, and may change.
    """
    train, data = config.train, config.data
    shape = {
        "seed": config.seed,
        "plan": {"places": split.places, "batch_size": train.batch_size}
        | {key: getattr(train, key) for key in ("token_budget", "patch_budget", "cost_budget", "lookahead")}
        | ({"packing": PACKING} if train.token_budget is not None else {}),
        "rates": {**config.rate, "levels": train.rate_levels} | ({"per_video": True} if train.rate_per_video else {}),
        "views": {"views": train.views, "anchor": train.anchor_rate} if train.views > 1 else None,
        "distill": asdict(train.distill) if train.distill.weight or train.distill.base_weight else None,
        "method": {**config.method, "scheme": config.model.scheme},
        "frames": {key: getattr(data, key) for key in FRAMES},
        "model": {"weights": _fingerprint_of(empty), "freeze": sorted(config.model.freeze)}
        | {"lora": _given(config.model.lora, empty) if config.model.lora.r is not None else None},
        "average": train.ema,
        "engine": {"state": _state(config.engine.name), "precision": config.engine.precision},
        "world": asdict(split),
    }
    return json.loads(json.dumps(shape))  # as it will be read


def _given(lora: LoraConfig, empty: nn.Module) -> dict[str, Any]:
    """Without what is off, which older checkpoints do not name, and with the targets that a null stands for."""
    targets = lora.targets or spec_of(base_model(empty).config).lora_targets
    return {key: value for key, value in asdict(lora).items() if value is not False} | {"targets": targets}


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
        allowing = f"resume_changes=[{','.join(sorted({*changes, *keys}))}]"
        remedy = f"{_keeping_step(then, now)}give another run_dir, or allow it with {allowing}"
    raise ValueError(f"resuming {checkpoint} would be another run ({found}): {remedy}")


def _keeping_step(then: dict[str, Any], now: dict[str, Any]) -> str:
    """What to give for the saved global step, where another one was requested."""
    places, ranks = then["plan"]["places"], now["world"]["ranks"]
    if places == now["plan"]["places"]:
        return ""
    if places % ranks:
        return f"start a number of ranks that divides {places}, "
    return f"keep the global step with train.accumulation={places // ranks}, "


def _differences(key: str, then: Any, now: Any) -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for name in sorted({*then, *now}):
            if then.get(name) != now.get(name):
                yield from _differences(f"{key}.{name}", then.get(name), now.get(name))
    else:
        yield f"{key} was {then}, is {now}"
