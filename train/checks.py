"""Checks for values of a configuration that contradict each other, before data or weights are read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from data.sources.spec import parse_sources
from train.config import TOWERS, Config, LoraConfig, TrainConfig, frame_policy
from train.ranges import check_values

NO_BITSANDBYTES = 'model.lora.quantize=nf4 needs bitsandbytes, which is not installed: pip install -e ".[qlora]"'
ALWAYS_ALLOWED = 64  # decoding processes that are accepted on every machine


def check(config: Config) -> None:
    """Raise ValueError for an invalid value, a contradiction or an unwritable folder. Data are not read."""
    check_values(config)
    for contradiction in chain(_in_data(config), _in_training(config), _in_engine(config)):
        raise ValueError(contradiction)
    frame_policy(config.data)
    config.data.columns.check()
    parse_sources("data.train", config.data.train)
    if config.data.eval is not None:
        parse_sources("data.eval", config.data.eval)
    if config.data.media_root is not None and not Path(config.data.media_root).is_dir():
        raise ValueError(
            f"data.media_root={config.data.media_root} is not a folder: give the folder that relative paths start from"
        )
    for key, folder in (("run_dir", config.run_dir), ("data.cache", config.data.cache)):
        if folder is not None:
            check_writable(key, Path(folder))


def _in_data(config: Config) -> Iterator[str]:
    """Contradictions in the data settings."""
    data, train = config.data, config.train
    processes, cores = data.workers * int(os.environ.get("LOCAL_WORLD_SIZE", 1)), os.cpu_count() or 1
    if processes > max(ALWAYS_ALLOWED, 4 * cores):
        yield f"data.workers={data.workers} is too many processes for the {cores} cores of this machine: lower it"
    if config.preflight in ("only", "dry_run") and not data.audit:
        yield f"preflight={config.preflight} needs the headers, which data.audit=false skips: set data.audit=true"
    if data.eval is not None and data.eval_fraction is not None:
        yield f"data.eval={data.eval} and data.eval_fraction={data.eval_fraction} both select held-out data: give one"
    if data.columns.named and data.format != "auto":
        yield f"data.format={data.format} has fixed column names, but data.columns renames them: give one of them"
    if train.token_budget is None and train.patch_budget is not None:
        yield "train.patch_budget needs train.token_budget: set both, or neither for a fixed number of samples"
    if train.token_budget is None and train.cost_budget not in (None, "auto"):
        yield f"train.cost_budget={train.cost_budget} needs train.token_budget, which bounds memory: set both"
    if train.token_budget is not None and not data.audit:
        yield "train.token_budget needs the headers, which data.audit=false skips: set data.audit=true"
    if train.token_budget is not None and train.batch_size > 1:
        yield f"train.batch_size={train.batch_size} has no effect with train.token_budget: remove one of them"


def _in_training(config: Config) -> Iterator[str]:
    """Contradictions in the settings of the model and its training."""
    model, train, engine, optim = config.model, config.train, config.engine, config.optim
    if set(model.freeze) == set(TOWERS) and model.lora.r is None:
        yield f"model.freeze={model.freeze} leaves nothing to train: unfreeze a tower or set model.lora.r"
    for entry in fields(LoraConfig) if model.lora.r is None else ():
        if (value := getattr(model.lora, entry.name)) != entry.default:
            yield f"model.lora.{entry.name}={value} has no effect without LoRA: set model.lora.r"
    if train.ema is not None and engine.name.startswith("zero"):
        yield f"train.ema={train.ema:g} needs all weights on every rank: use engine=none or engine=ddp"
    for tower in ("vision", "merger"):
        lr = getattr(optim, f"{tower}_lr")
        if lr is not None and (tower in model.freeze or model.lora.r is not None):
            yield f"optim.{tower}_lr={lr} has no effect, the tower is not trained: see model.freeze and model.lora.r"
    if "flash" in model.attention and engine.precision == "fp32":
        yield f"model.attention={model.attention} supports half precision only: use engine.precision=bf16"
    if not model.gradient_checkpointing and model.checkpoint_towers == []:
        yield "model.checkpoint_towers=[] has no effect without model.gradient_checkpointing: remove one of them"
    if train.offload_activations and "language" not in model.recomputed:
        yield (
            "train.offload_activations=true offloads the inputs of recomputed layers: set "
            "model.gradient_checkpointing=true and language in model.checkpoint_towers"
        )
    if train.anchor_rate is not None and train.views == 1:
        yield f"train.anchor_rate={train.anchor_rate} fixes the only view: set train.views=2, or use rate=constant"
    if model.lora.r is not None and model.lora.quantize is not None:
        if find_spec("bitsandbytes") is None:
            yield NO_BITSANDBYTES
        if engine.name.startswith("zero3"):
            yield f"model.lora.quantize=nf4: engine={engine.name} cannot shard 4-bit weights: use ddp, zero1 or zero2"
        if model.compile:
            yield "model.lora.quantize=nf4 cannot be compiled: remove model.compile=true"
    yield from _in_distillation(train, model.lora.r is not None)
    if optim.warmup > train.steps:
        yield f"optim.warmup={optim.warmup:g} is longer than train.steps={train.steps}: lower it (below 1: a fraction)"


def _in_distillation(train: TrainConfig, lora: bool) -> Iterator[str]:
    """Contradictions in the distillation settings."""
    distill = train.distill
    if distill.weight > 0 and distill.teacher == "view" and train.views == 1:
        yield (
            f"train.distill.weight={distill.weight:g} needs a second view to teach: set train.views=2, and "
            "train.anchor_rate=0 for an unpruned teacher"
        )
    if distill.needs_base and not lora:
        yield (
            "train.distill: the base model can teach only with LoRA, by disabling the adapter: set model.lora.r, or "
            "train.distill.teacher=view and base_weight=0"
        )
    if distill.base_weight > 0 and train.anchor_rate != 0:
        yield (
            f"train.distill.base_weight={distill.base_weight:g} needs a view at rate 0: set train.views=2 and "
            "train.anchor_rate=0"
        )
    if not distill.train_teacher and (distill.teacher == "base" or distill.base_weight > 0):
        yield (
            "train.distill.train_teacher=false gives the first view no gradient, but the base model is to teach it: "
            "remove one of them"
        )


def _in_engine(config: Config) -> Iterator[str]:
    """Contradictions in the engine settings."""
    model, engine = config.model, config.engine
    if model.compile and engine.name.startswith("zero3"):
        yield f"model.compile=true is not supported with engine={engine.name}: remove one of them"
    if (size := engine.sequence_parallel) > 1:
        shared = f"engine.sequence_parallel={size}"
        if engine.name == "none":
            yield f"{shared} needs several processes: use engine=ddp or zero1..zero3"
        if model.attention != "sdpa" and "flash" not in model.attention:
            yield f"{shared}: model.attention={model.attention} cannot keep packed samples apart: use sdpa or flash"
        if model.compile:
            yield f"{shared} exchanges tokens within layers, which model.compile=true cannot trace: remove one of them"
    stage = engine.zero.get("stage")
    if engine.name.startswith("zero") and engine.name[4:5] != str(stage):
        yield f"engine.zero.stage={stage} contradicts engine={engine.name}: choose the stage by engine=zero1..zero3"
    if not engine.name.startswith("zero") and engine.zero:
        yield f"engine.zero has no effect with engine={engine.name}: use engine=zero1..zero3"


def check_writable(key: str, folder: Path) -> None:
    """Raise ValueError if the folder that `key` names can neither be written to nor created."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        reason = "read-only for this user" if existing.is_dir() else "a file"
        raise ValueError(f"{key}={folder} cannot be written ({existing} is {reason}): choose another folder")
