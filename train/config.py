"""Every default and every cross-field check. YAML selects and overrides; below run.py no function sees a raw config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from data.media.frames import FramePolicy

ENGINES = ("none", "ddp", "zero0", "zero1", "zero2", "zero3", "zero3_offload")
TOWERS = ("vision", "merger", "language")


@dataclass
class LoraConfig:
    r: int | None = None  # rank; null: no LoRA, all weights are trained
    alpha: int = 128
    dropout: float = 0.05
    targets: str = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"  # a regular expression over module names


@dataclass
class ModelConfig:
    path: str = MISSING  # a folder or a Hub id
    revision: str | None = None
    attention: str = "sdpa"  # transformers' attn_implementation: sdpa, eager, flash_attention_2, flash_attention_3, ...
    scheme: str = "preserve"  # positions under pruning; vllm, vllm_bf16: those of a stock server (Qwen2.5-VL)
    freeze: list[str] = field(default_factory=list)  # any of TOWERS
    lora: LoraConfig = field(default_factory=LoraConfig)
    gradient_checkpointing: bool = True
    checkpoint_towers: list[str] = field(default_factory=lambda: ["vision", "language"])  # where it is on
    compile: bool = False  # torch.compile of the language model's layers; not under ZeRO 3


@dataclass
class DataConfig:
    train: str = MISSING  # JSON or JSONL
    eval: str | None = None
    format: str = "auto"
    media_root: str | None = None  # default: the folder of the file
    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 128
    min_pixels: int | None = None  # of a frame; null: as the checkpoint says
    max_pixels: int | None = None  # of a frame
    total_pixels: int | None = None  # of all frames of a video together
    max_tokens: int | None = None  # longer rows are dropped whole, and counted
    workers: int = 4
    audit: bool = True  # read every file's header before the first step


@dataclass
class OptimConfig:
    lr: float = 1e-5
    vision_lr: float | None = None  # None: lr
    merger_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: float = 0.03  # fraction of the steps when below 1, else steps
    final_lr: float = 0.1  # of the peak, at the end of the cosine
    clip: float = 1.0


@dataclass
class EngineConfig:
    name: str = "none"
    precision: str = "bf16"  # bf16 | fp32
    zero: dict[str, Any] = field(default_factory=dict)  # DeepSpeed's zero_optimization, as is


@dataclass
class TrainConfig:
    steps: int = MISSING
    batch_size: int = 1  # samples a rank and micro-batch; without effect under a token budget
    token_budget: int | None = None  # tokens the language model reads a micro-batch; null: batch_size samples
    patch_budget: int | None = None  # patches the vision tower reads a micro-batch; null: as many as come
    lookahead: int = 1024  # samples among which the ones that fill a budget are looked for
    accumulation: int = 1  # micro-batches a step, each with its own rate
    rate_levels: int | None = 64  # rates that are ever drawn, so that lengths recur; null: any
    save_every: int = 500
    keep: int = 2  # checkpoints
    log_every: int = 10


@dataclass
class EvalConfig:
    every: int = 500  # steps; 0: never
    rates: list[float] = field(default_factory=lambda: [0.0, 0.5, 0.75, 0.9])
    batch_size: int = 1
    limit: int | None = None  # samples


@dataclass
class TrackerConfig:
    wandb: bool = True  # offline unless a key is known
    project: str = "evs-uptrain"
    name: str | None = None


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rate: dict[str, Any] = MISSING  # _target_ of a rate distribution and its arguments
    scorer: dict[str, Any] = MISSING  # _target_ of a scorer and its arguments
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    run_dir: str = MISSING
    resume: str | None = (
        None  # None: a fresh run; auto: its latest checkpoint if there is one; or a checkpoint's folder
    )
    preflight: str | None = None  # null: tell the memory needed, stop if it cannot fit; only: tell it and exit; off
    seed: int = 0


def check(config: Config) -> None:
    """Raise ValueError for what is wrong in itself or in combination; nothing is read or built."""
    _one_of("engine", config.engine.name, ENGINES)
    if config.preflight is not None:
        _one_of("preflight", config.preflight, ("only", "off"))
    if config.preflight == "only" and not config.data.audit:
        raise ValueError("preflight=only needs the headers that data.audit=false leaves unread: set data.audit=true")
    _one_of("engine.precision", config.engine.precision, ("bf16", "fp32"))
    for tower in config.model.freeze:
        _one_of("model.freeze", tower, TOWERS)
    for tower in config.model.checkpoint_towers:
        _one_of("model.checkpoint_towers", tower, ("vision", "language"))
    if config.model.compile and config.engine.name.startswith("zero3"):
        raise ValueError(f"model.compile=true does not hold under engine={config.engine.name}: leave one of them out")
    if set(config.model.freeze) == set(TOWERS) and config.model.lora.r is None:
        raise ValueError(
            f"model.freeze={config.model.freeze} leaves nothing to train: unfreeze a tower or set model.lora.r"
        )
    for key in ("steps", "batch_size", "lookahead", "accumulation", "save_every", "keep", "log_every"):
        _at_least(f"train.{key}", getattr(config.train, key), 1)
    for key, least in (("token_budget", 1), ("patch_budget", 1), ("rate_levels", 2)):
        if (value := getattr(config.train, key)) is not None:
            _at_least(f"train.{key}", value, least)
    if config.train.token_budget is None and config.train.patch_budget is not None:
        raise ValueError("train.patch_budget needs train.token_budget: give both, or neither for fixed sizes")
    if config.train.token_budget is not None and not config.data.audit:
        raise ValueError(
            "train.token_budget needs the headers that data.audit=false leaves unread: set data.audit=true"
        )
    for key in ("lr", "clip", "eps"):
        if not getattr(config.optim, key) > 0:
            raise ValueError(f"optim.{key}={getattr(config.optim, key)} must be above 0")
    frame_policy(config.data)
    _at_least("eval.every", config.eval.every, 0)
    _at_least("eval.batch_size", config.eval.batch_size, 1)
    check_rates("eval.rates", config.eval.rates)
    for key in ("train", "eval"):
        path = getattr(config.data, key)
        if path is not None and not Path(path).is_file():
            raise ValueError(f"data.{key}={path} does not exist: give a .json or .jsonl file")


def frame_policy(data: DataConfig) -> FramePolicy:
    """How many frames and pixels of a video are taken. Raises ValueError for what contradicts itself."""
    return FramePolicy(data.fps, data.min_frames, data.max_frames, data.min_pixels, data.max_pixels, data.total_pixels)


def check_rates(key: str, rates: Sequence[float]) -> None:
    """Raise ValueError for an empty list and for what is no rate."""
    if not rates:
        raise ValueError(f"{key}=[] evaluates nothing: give at least one rate, such as [0,0.5,0.75]")
    for rate in rates:
        if not 0 <= rate < 1:
            raise ValueError(f"{key} holds {rate}, outside [0, 1): give fractions of video tokens to remove")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key}={value} is unknown: use one of {', '.join(allowed)}")


def _at_least(key: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{key}={value} must be at least {least}")
