"""What a configuration cannot hold together, found before data or weights are read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from data.sources.spec import parse_sources
from train.config import TOWERS, Config, TrainConfig, frame_policy
from train.ranges import check_values

PROCESSES = 64  # that decode, which any machine may have


def check(config: Config) -> None:
    """Raise ValueError for what is wrong in itself or in combination; nothing is read or built."""
    check_values(config)
    for wrong, message in chain(_in_data(config), _in_training(config), _in_engine(config)):
        if wrong:
            raise ValueError(message)
    frame_policy(config.data)
    config.data.columns.check()
    parse_sources("data.train", config.data.train)
    if config.data.eval is not None:
        parse_sources("data.eval", config.data.eval)
    if config.data.media_root is not None and not Path(config.data.media_root).is_dir():
        raise ValueError(
            f"data.media_root={config.data.media_root} is no folder: give the one that media paths start at"
        )
    for key, folder in (("run_dir", config.run_dir), ("data.cache", config.data.cache)):
        if folder is not None:
            check_writable(key, Path(folder))


def _in_data(config: Config) -> Iterator[tuple[bool, str]]:
    """Values that are each right and cannot hold together: (whether they stand there, what to do about it)."""
    data, train = config.data, config.train
    processes, cores = data.workers * int(os.environ.get("LOCAL_WORLD_SIZE", 1)), os.cpu_count() or 1
    yield (
        processes > max(PROCESSES, 4 * cores),
        f"data.workers={data.workers} is more than the {cores} cores of this machine can serve: lower it",
    )
    yield (
        config.preflight in ("only", "dry_run") and not data.audit,
        f"preflight={config.preflight} needs the headers that data.audit=false leaves unread: set data.audit=true",
    )
    yield (
        data.eval is not None and data.eval_fraction is not None,
        f"data.eval={data.eval} and data.eval_fraction={data.eval_fraction} both name what is held out: give one",
    )
    yield (
        bool(data.columns.named) and data.format != "auto",
        f"data.format={data.format} has fixed columns, which data.columns would rename: give one of them",
    )
    yield (
        train.token_budget is None and train.patch_budget is not None,
        "train.patch_budget needs train.token_budget: give both, or neither for fixed sizes",
    )
    yield (
        train.token_budget is None and train.cost_budget not in (None, "auto"),
        f"train.cost_budget={train.cost_budget} needs train.token_budget, which bounds memory: give both",
    )
    yield (
        train.token_budget is not None and not data.audit,
        "train.token_budget needs the headers that data.audit=false leaves unread: set data.audit=true",
    )
    yield (
        train.token_budget is not None and train.batch_size > 1,
        f"train.batch_size={train.batch_size} has no effect under train.token_budget: leave one of them out",
    )


def _in_training(config: Config) -> Iterator[tuple[bool, str]]:
    """As `_in_data`, of what is trained and how."""
    model, train, engine, optim = config.model, config.train, config.engine, config.optim
    yield (
        set(model.freeze) == set(TOWERS) and model.lora.r is None,
        f"model.freeze={model.freeze} leaves nothing to train: unfreeze a tower or set model.lora.r",
    )
    yield (
        model.lora.dora and model.lora.r is None,
        "model.lora.dora=true has no effect without LoRA: set model.lora.r",
    )
    yield (
        train.ema is not None and engine.name.startswith("zero"),
        f"train.ema={train.ema:g} needs whole weights on every rank: use engine=none or engine=ddp"
        if train.ema is not None
        else "",
    )
    for tower in ("vision", "merger"):
        lr = getattr(optim, f"{tower}_lr")
        yield (
            lr is not None and (tower in model.freeze or model.lora.r is not None),
            f"optim.{tower}_lr={lr} has no effect on a tower that is not trained: see model.freeze and model.lora.r",
        )
    yield (
        "flash" in model.attention and engine.precision == "fp32",
        f"model.attention={model.attention} computes in half precision only: use engine.precision=bf16",
    )
    yield (
        not model.gradient_checkpointing and model.checkpoint_towers == [],
        "model.checkpoint_towers=[] has no effect without model.gradient_checkpointing: leave one of them out",
    )
    yield (
        train.anchor_rate is not None and train.views == 1,
        f"train.anchor_rate={train.anchor_rate} leaves no view to draw: set train.views=2, or use rate=constant",
    )
    yield from _in_distillation(train, model.lora.r is not None)
    yield (
        optim.warmup > train.steps,
        f"optim.warmup={optim.warmup:g} is longer than train.steps={train.steps}: lower it (below 1: a fraction)",
    )


def _in_distillation(train: TrainConfig, lora: bool) -> Iterator[tuple[bool, str]]:
    """As `_in_data`, of views that teach."""
    distill = train.distill
    yield (
        distill.weight > 0 and distill.teacher == "view" and train.views == 1,
        f"train.distill.weight={distill.weight:g} needs a view that teaches another: set train.views=2, and "
        "train.anchor_rate=0 for an unpruned teacher",
    )
    yield (
        distill.needs_base and not lora,
        "train.distill: the base teaches with LoRA switched off; without LoRA it would be a second copy of the "
        "weights: set model.lora.r, or train.distill.teacher=view and base_weight=0",
    )
    yield (
        distill.base_weight > 0 and train.anchor_rate != 0,
        f"train.distill.base_weight={distill.base_weight:g} needs a view at rate 0: set train.views=2 and "
        "train.anchor_rate=0",
    )
    yield (
        not distill.train_teacher and (distill.teacher == "base" or distill.base_weight > 0),
        "train.distill.train_teacher=false leaves the first view without gradient, which the base is to teach: leave "
        "one of them out",
    )


def _in_engine(config: Config) -> Iterator[tuple[bool, str]]:
    """As `_in_data`, of what the engine runs."""
    model, engine = config.model, config.engine
    yield (
        model.compile and engine.name.startswith("zero3"),
        f"model.compile=true does not hold under engine={engine.name}: leave one of them out",
    )
    stage = engine.zero.get("stage")
    yield (
        engine.name.startswith("zero") and engine.name[4:5] != str(stage),
        f"engine.zero.stage={stage} does not hold under engine={engine.name}: choose the stage by engine=zero1..zero3",
    )
    yield (
        not engine.name.startswith("zero") and bool(engine.zero),
        f"engine.zero has no effect under engine={engine.name}: use engine=zero1..zero3",
    )


def check_writable(key: str, folder: Path) -> None:
    """Raise ValueError where nothing can be written to the folder that `key` names."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{key}={folder} cannot be written ({there} is {_why(there)}): choose another folder")


def _why(path: Path) -> str:
    return "read-only for this user" if path.is_dir() else "a file"
