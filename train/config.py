"""Every default and its range. YAML selects and overrides; below run.py no function sees a raw config."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from data.formats.columns import Columns
from data.media.frames import TIMES, FramePolicy
from data.sample_limits import SampleLimits
from train.faults.signals import DEFAULT, SIGNALS
from train.faults.watchdog import TIMEOUT_MINUTES
from train.ranges import Expression, names, number, pruning_rates, ruled

ENGINES = ("none", "ddp", "zero1", "zero2", "zero3", "zero3_offload")
RESUMABLE = ("seed", "data", "plan", "rates", "views", "distill", "method", "frames")
TOWERS = ("vision", "merger", "language")
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
TEACHERS = ("view", "base")
DIRECTIONS = ("forward", "reverse")
SCHEMES = ("preserve", "vllm", "vllm_bf16")
NUMBER = r"\d*\.?\d*[1-9]\d*\.?\d*(e[+-]?\d+)?"  # above 0
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

    @property
    def recomputed(self) -> list[str]:
        """Towers whose activations are made again in the backward pass."""
        return self.checkpoint_towers if self.gradient_checkpointing else []


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
    workers: int = number(4, least=0, most=1024)  # processes that decode; 0: this one
    audit: bool = True  # read every file's header before the first step
    # What one sample may take before it is left out.
    sample_seconds: float = number(SampleLimits.seconds, above=0)  # from file to tensors
    sample_gib: float = number(
        SampleLimits.gib, above=0
    )  # of decoded pixels, by the headers: frames x height x width x 3
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
    # Minutes without progress after which every rank writes where it is, and the run ends.
    timeout_minutes: float = number(TIMEOUT_MINUTES, above=0, most=525_600)
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
    cost_budget: str | None = names("auto", "auto", pattern=NUMBER)  # see token_budget
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
    signals: list[str] = names(list(DEFAULT), *SIGNALS)  # save, and exit with status 85


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
    method: dict[str, Any] = MISSING  # _target_ of a pruning method and its arguments, or methods: of which steps draw
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    run_dir: str = MISSING  # default: runs/EXPERIMENT
    resume: str | None = None  # null: a fresh run; auto: from its newest checkpoint, if any; or a checkpoint's folder
    # What may differ from the run that is resumed: any of train.checkpoint.run_identity's keys that a refusal names.
    resume_changes: list[str] = names([], *RESUMABLE)
    # null: print a forecast of the memory needed, stop if it cannot fit. dry_run: also measure it before the first
    # step, by forward and backward of the largest micro-batch. only: print the forecast and exit. off: neither
    preflight: str | None = names(None, "only", "dry_run", "off")
    show: bool = True  # print what is trained, and one row as the model reads it, before the first step
    seed: int = number(0, least=0, below=2**63)  # of data order, rates, LoRA and dropout


def frame_policy(data: DataConfig) -> FramePolicy:
    """How many frames and pixels of a video are taken. Raises ValueError for what contradicts itself."""
    return FramePolicy(**{each.name: getattr(data, each.name) for each in fields(FramePolicy)})
