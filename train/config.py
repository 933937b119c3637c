"""Every default and every cross-field check. YAML selects and overrides; below run.py no function sees a raw config."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from data.containment import Limits
from data.formats.columns import Columns
from data.media.frames import TIMES, FramePolicy
from data.sources.spec import parts_of
from train.ranges import Expression, check_values, names, number, pruning_rates, ruled

ENGINES = ("none", "ddp", "zero1", "zero2", "zero3", "zero3_offload")
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGCONT", "SIGQUIT", "SIGXCPU")
RESUMABLE = ("seed", "data", "plan", "rates", "views", "distill", "method", "frames")
TOWERS = ("vision", "merger", "language")
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
TEACHERS = ("view", "base")
DIRECTIONS = ("forward", "reverse")
SCHEMES = ("preserve", "vllm", "vllm_bf16")
CELL = 28 * 28  # pixels of the smallest visual token of any family


@dataclass
class LoraConfig:
    r: int | None = number(None, least=1)  # rank; null: no LoRA, all weights are trained
    alpha: int = number(128, least=1)  # its scale is alpha / r
    dropout: float = number(0.05, least=0, below=1)  # before the adapters
    dora: bool = False  # DoRA: the length of every weight's columns is trained apart from their direction
    # Over module names. Not the output projection of a Mamba mixer: the kernel for training reads its weight directly,
    # and LoRA in the module would be skipped silently.
    targets: str = ruled(
        r".*language_model.*\.((q|k|v|o|gate|up|down|in)_proj(_\w+)?|(?<!\.mixer\.)out_proj)", Expression()
    )


@dataclass
class ModelConfig:
    path: str = MISSING  # a folder or a Hub id
    revision: str | None = None  # commit or branch on the Hub
    attention: str = names("sdpa", *ATTENTION, pattern=".+/.+")  # transformers' attn_implementation; a/b: a Hub kernel
    scheme: str = names("preserve", *SCHEMES)  # positions under pruning; vllm*: a stock server's (Qwen2.5-VL)
    freeze: list[str] = names([], *TOWERS)  # towers that are not trained
    lora: LoraConfig = field(default_factory=LoraConfig)
    gradient_checkpointing: bool = True  # less memory for a second forward pass
    checkpoint_towers: list[str] = names(["vision", "language"], "vision", "language")  # where it is on
    compile: bool = False  # torch.compile of the language model's layers; not under ZeRO 3


@dataclass
class DataConfig:
    train: Any = MISSING  # a file, list, glob or dataset, or a mapping of them to weights: see data/sources/spec.py
    eval: Any = None  # held-out data, named likewise; its accuracy by rate is measured during the run
    eval_fraction: float | None = number(None, above=0, below=1)  # of data.train's rows, held out by video
    format: str = "auto"  # a layout of data/formats, found by its columns where it is auto
    columns: Columns = field(default_factory=Columns)  # names that differ in the data
    media_root: str | None = None  # where relative media paths start, and which none may leave; null: the file's folder
    cache: str | None = None  # folder of the index; null: beside the data, or the user's where that is read-only
    fps: float = number(FramePolicy.fps, above=0)
    min_frames: int = number(FramePolicy.min_frames, least=2)
    max_frames: int = number(FramePolicy.max_frames, least=2)  # the server's default; max_tokens keeps memory in check
    min_pixels: int | None = number(None, least=CELL)  # of a frame (Qwen3-VL: a video); null: as the checkpoint says
    max_pixels: int | None = number(None, least=CELL)  # of a frame
    total_pixels: int | None = number(None, least=CELL)  # of all frames of a video together
    times: str = names(FramePolicy.times, *TIMES)  # frame times the model reads: index / average rate, or the real ones
    max_tokens: int | None = number(None, least=1)  # longer rows are dropped whole, and counted
    workers: int = number(4, least=0)  # processes that decode; 0: this one
    audit: bool = True  # read every file's header before the first step
    # What one sample may take before it is left out.
    sample_seconds: float = number(Limits.seconds, above=0)  # from file to tensors
    sample_gib: float = number(Limits.gib, above=0)  # of decoded pixels, by the headers: frames x height x width x 3
    # Share of the audited rows, or of the samples so far, that may be left out, those of too many tokens among them;
    # above it the run stops and says why. Three rows are never too many, nor are so many of the first 100 samples as
    # this share of 100; 0: none may be bad.
    max_bad_fraction: float = number(0.1, least=0, most=1)


@dataclass
class OptimConfig:
    lr: float = number(1e-5, above=0)  # at the peak
    vision_lr: float | None = number(None, least=0)  # None: lr
    merger_lr: float | None = number(None, least=0)  # None: lr
    betas: tuple[float, float] = number((0.9, 0.98), least=0, below=1)  # AdamW's
    eps: float = number(1e-8, above=0)  # AdamW's
    weight_decay: float = number(0.0, least=0)  # AdamW's
    warmup: float = number(0.03, least=0)  # fraction of the steps when below 1, else steps
    final_lr: float = number(0.1, least=0, most=1)  # of the peak, at the end of the cosine
    clip: float = number(1.0, above=0)  # of the gradient norm


@dataclass
class EngineConfig:
    name: str = names("none", *ENGINES)  # set by engine=
    precision: str = names("bf16", "bf16", "fp32")  # of forward and backward passes
    timeout_minutes: float = number(30, above=0)  # without progress: every rank writes where it is, and the run ends
    zero: dict[str, Any] = field(default_factory=dict)  # DeepSpeed's zero_optimization, as is


@dataclass
class DistillConfig:
    """Views that teach one another, at labelled tokens. A teacher's side has no gradient."""

    # Of the divergence from the teacher, beside the cross-entropy; 0: none
    weight: float = number(0.0, least=0)
    teacher: str = names("view", *TEACHERS)  # view: the one of the lowest rate; base: the model without its LoRA on it
    train_teacher: bool = True  # the view that teaches by its cross-entropy too; false: it is read without gradient
    direction: str = names("forward", *DIRECTIONS)  # forward: KL(teacher || student); reverse: KL(student || teacher)
    temperature: float = number(1.0, above=0)  # that logits are divided by; divergences are multiplied by its square
    # Of the divergence from the model without its LoRA on views at rate 0, against forgetting; 0: none
    base_weight: float = number(0.0, least=0)

    @property
    def alone(self) -> bool:
        """Whether the view that teaches does nothing else."""
        return self.weight > 0 and self.teacher == "view" and not self.train_teacher

    @property
    def needs_base(self) -> bool:
        """Whether the model is read without its LoRA."""
        return bool(self.base_weight or (self.weight and self.teacher == "base"))


@dataclass
class TrainConfig:
    steps: int = number(MISSING, least=1)  # of the optimizer
    batch_size: int = number(1, least=1)  # samples a rank and micro-batch; without effect under a token budget
    # What a micro-batch may hold: tokens that the language model reads in all views (null: batch_size samples
    # instead), and patches that the vision tower reads (null: as many as come). Both bound memory; what a step takes is
    # bounded by its cost, 10^12 operations of forward, backward and recomputation: a number, auto (what token_budget
    # tokens cost at the lowest rate, less a tenth), or null (equal in tokens).
    token_budget: int | None = number(None, least=1)
    patch_budget: int | None = number(None, least=1)  # patches of a micro-batch; see token_budget
    cost_budget: str | None = names("auto", "auto", pattern=r"\d*\.?\d*[1-9]\d*\.?\d*(e[+-]?\d+)?")  # see token_budget
    lookahead: int = number(256, least=1)  # samples beyond a step's own among which those that fit are looked for
    accumulation: int = number(1, least=1)  # micro-batches a step, each with its own rate
    rate_levels: int | None = number(64, least=2)  # rates that are ever drawn, so that lengths recur; null: any
    rate_per_video: bool = False  # each video of a micro-batch draws its own; budgets count it at the lowest
    # How often the language model reads in a step what is decoded and seen by the vision tower once: at one rate from
    # each of as many equal shares of the distribution. The loss is the mean over these views.
    views: int = number(1, least=1)
    # Rate of one of the views, always, the others are drawn; 0: each video is also read unpruned. null: all are drawn
    anchor_rate: float | None = number(None, least=0, below=1)
    distill: DistillConfig = field(default_factory=DistillConfig)
    save_every: int = number(500, least=1)  # steps
    keep: int = number(2, least=1)  # checkpoints
    log_every: int = number(10, least=1)  # steps
    ema: float | None = number(None, above=0, below=1)  # decay of an average of the weights, saved beside them
    max_bad_steps: int = number(5, least=1)  # in a row whose loss or gradient is not finite: skipped, then the run ends
    signals: list[str] = names(["SIGTERM", "SIGUSR1", "SIGUSR2"], *SIGNALS)  # save, and exit with status 85


@dataclass
class EvalConfig:
    every: int = number(500, least=0)  # steps; 0: never
    rates: list[float] = pruning_rates([0.0, 0.5, 0.75, 0.9])
    batch_size: int = number(1, least=1)  # samples that are read together
    limit: int | None = number(None, least=1)  # samples
    new_tokens: int = number(64, least=1)  # of an answer that is written, for rows that name a metric


@dataclass
class TrackerConfig:
    wandb: bool = True  # offline unless a key is known and the network answers
    tensorboard: bool = True  # event files in the run's folder
    batches: bool = False  # list the samples and the rates of every micro-batch in batches.jsonl
    project: str = "evs-uptrain"  # W&B's
    name: str | None = None  # of the run in W&B and on the model card; default: its folder's


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rate: dict[str, Any] = MISSING  # _target_ of a rate distribution and its arguments
    method: dict[str, Any] = MISSING  # _target_ of a pruning method and its arguments
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    run_dir: str = MISSING  # default: runs/EXPERIMENT
    resume: str | None = None  # null: a fresh run; auto: from its newest checkpoint, if any; or a checkpoint's folder
    # What may differ from the run that is resumed: any of train.state.shape's keys that a refusal names.
    resume_changes: list[str] = names([], *RESUMABLE)
    # null: print the memory needed, stop if it cannot fit; only: print it and exit; off
    preflight: str | None = names(None, "only", "off")
    show: bool = True  # print what is trained, and one row as the model reads it, before the first step
    seed: int = number(0, least=0, below=2**63)  # of data order, rates, LoRA and dropout


def check(config: Config) -> None:
    """Raise ValueError for what is wrong in itself or in combination; nothing is read or built."""
    check_values(config)
    for wrong, message in chain(_in_data(config), _in_training(config), _in_engine(config)):
        if wrong:
            raise ValueError(message)
    frame_policy(config.data)
    config.data.columns.check()
    parts_of("data.train", config.data.train)
    if config.data.eval is not None:
        parts_of("data.eval", config.data.eval)
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
    yield (
        config.preflight == "only" and not data.audit,
        "preflight=only needs the headers that data.audit=false leaves unread: set data.audit=true",
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


def frame_policy(data: DataConfig) -> FramePolicy:
    """How many frames and pixels of a video are taken. Raises ValueError for what contradicts itself."""
    return FramePolicy(**{each.name: getattr(data, each.name) for each in fields(FramePolicy)})
