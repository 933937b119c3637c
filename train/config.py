"""The configuration: every key with its default and range. The comment of a key is its help text."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from data.formats.columns import Columns
from data.media.frames import TIMES, FramePolicy
from data.sample_limits import SampleLimits
from train.faults.signals import DEFAULT, SIGNALS
from train.faults.watchdog import TIMEOUT_MINUTES
from train.ranges import expression, names, number, pruning_rates

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
    # Rank of the LoRA matrices; null trains all weights without LoRA.
    r: int | None = number(None, least=1)
    # LoRA's scale is alpha / r.
    alpha: int = number(128, least=1)
    # Dropout probability of the adapters' inputs.
    dropout: float = number(0.05, least=0, below=1)
    # Use DoRA: the magnitude of every weight's columns is trained separately from their direction.
    dora: bool = False
    # nf4 holds the linear layers of the language model in 4 bits (QLoRA, needs bitsandbytes; not under ZeRO 3); null
    # holds them like the other weights.
    quantize: str | None = names(None, "nf4")
    # Regular expression over the names of modules that get adapters; null takes the model family's own, which covers
    # the linear layers of the language model.
    targets: str | None = expression(None)


@dataclass
class ModelConfig:
    # Folder or Hub id of the model.
    path: str = MISSING
    # Commit or branch of a model on the Hub.
    revision: str | None = None
    # attn_implementation of transformers; a value like user/kernel loads a kernel from the Hub.
    attention: str = names("sdpa", *ATTENTION, pattern=".+/.+")
    # Position scheme under pruning; vllm and vllm_bf16 imitate a stock vLLM server, for the families that have them.
    scheme: str = names("preserve", *SCHEMES)
    # Parts of the model that are not trained.
    freeze: list[str] = names([], *TOWERS)
    lora: LoraConfig = field(default_factory=LoraConfig)
    # Recompute activations in the backward pass: less memory, one more forward pass.
    gradient_checkpointing: bool = True
    # Parts of the model in which gradient checkpointing is used.
    checkpoint_towers: list[str] = names(["vision", "language"], "vision", "language")
    # Compile the layers of the language model with torch.compile; not available under ZeRO 3.
    compile: bool = False

    @property
    def recomputed(self) -> list[str]:
        """Parts of the model whose activations are recomputed in the backward pass."""
        return self.checkpoint_towers if self.gradient_checkpointing else []


@dataclass
class DataConfig:
    # Training data: a file, list, glob or dataset id, or a mapping of them to weights (docs/data.md).
    train: Any = MISSING
    # Held-out data, given like data.train; its accuracy is measured at every rate of eval.rates.
    eval: Any = None
    # Fraction of the rows of data.train to hold out for evaluation, split by video.
    eval_fraction: float | None = number(None, above=0, below=1)
    # Layout of the rows, a module of data/formats; auto detects it from the columns.
    format: str = "auto"
    # Column names of the data that differ from the layout's.
    columns: Columns = field(default_factory=Columns)
    # Folder that relative media paths start from and that no path may leave; null uses the folder of the data file.
    media_root: str | None = None
    # Folder of the index; null uses the folder of the data, or ~/.cache/evs if that is read-only.
    cache: str | None = None
    # Frames to sample per second of video.
    fps: float = number(FramePolicy.fps, above=0)
    # Least number of frames of a video that is long enough.
    min_frames: int = number(FramePolicy.min_frames, least=2)
    # Greatest number of frames of a video.
    max_frames: int = number(FramePolicy.max_frames, least=2)
    # Least number of pixels of a frame, or of a video if the family limits those; null uses the checkpoint's.
    min_pixels: int | None = number(None, least=CELL)
    # Greatest number of pixels of a frame; null uses the checkpoint's.
    max_pixels: int | None = number(None, least=CELL)
    # Greatest number of pixels of all frames of a video together; null sets no limit.
    total_pixels: int | None = number(None, least=CELL)
    # Frame times given to the model: server uses index / average rate as servers do, real uses the file's timestamps.
    times: str = names(FramePolicy.times, *TIMES)
    # Greatest number of tokens of a row before pruning; longer rows are quarantined, never truncated.
    max_tokens: int | None = number(None, least=1)
    # Number of processes that decode videos; 0 decodes in the training process.
    workers: int = number(4, least=0, most=1024)
    # Read the header of every medium before the first step. Budgets and the memory forecast need it.
    audit: bool = True
    # Time limit in seconds for reading one sample, from file to tensors.
    sample_seconds: float = number(SampleLimits.seconds, above=0)
    # Memory limit in GiB for the decoded pixels of one sample (frames x height x width x 3).
    sample_gib: float = number(SampleLimits.gib, above=0)
    # Fraction of the samples that may be quarantined before the run stops. Three samples are always allowed, and
    # during the first 100 samples this fraction of 100. 0 allows none.
    max_bad_fraction: float = number(0.1, least=0, most=1)


@dataclass
class OptimConfig:
    # Peak learning rate of the cosine schedule.
    lr: float = number(1e-5, above=0)
    # Peak learning rate of the vision tower; null uses optim.lr.
    vision_lr: float | None = number(None, least=0)
    # Peak learning rate of the merger; null uses optim.lr.
    merger_lr: float | None = number(None, least=0)
    # Betas of AdamW.
    betas: tuple[float, float] = number((0.9, 0.98), least=0, below=1)
    # Epsilon of AdamW.
    eps: float = number(1e-8, above=0)
    # Weight decay of AdamW, applied to matrices only.
    weight_decay: float = number(0.0, least=0)
    # Length of the linear warm-up: a fraction of the steps below 1, else a number of steps.
    warmup: float = number(0.03, least=0)
    # Learning rate at the end of the cosine schedule, as a fraction of the peak.
    final_lr: float = number(0.1, least=0, most=1)
    # Gradient norm above which gradients are scaled down.
    clip: float = number(1.0, above=0)


@dataclass
class EngineConfig:
    # Engine, set by the group engine=.
    name: str = names("none", *ENGINES)
    # Precision of forward and backward passes.
    precision: str = names("bf16", "bf16", "fp32")
    # Number of ranks that share every batch after pruning, each with a slice of its tokens. It divides the number of
    # processes and the attention heads; batches, budgets and rates are those of processes / sequence_parallel ranks.
    sequence_parallel: int = number(1, least=1)
    # Minutes without progress after which the run ends; every rank first writes its stacks to run_dir/stall.
    timeout_minutes: float = number(TIMEOUT_MINUTES, above=0, most=525_600)
    # DeepSpeed's zero_optimization section, passed unchanged.
    zero: dict[str, Any] = field(default_factory=dict)


@dataclass
class DistillConfig:
    """Distillation between views at the labelled tokens. No gradient reaches a teacher."""

    # Weight of the divergence from the teacher, added to the cross-entropy; 0 disables distillation.
    weight: float = number(0.0, least=0)
    # view: the view of the lowest rate teaches the others; base: the model without its LoRA teaches.
    teacher: str = names("view", *TEACHERS)
    # Train the teaching view by its cross-entropy too; false runs it without gradient.
    train_teacher: bool = True
    # forward is KL(teacher || student), reverse is KL(student || teacher).
    direction: str = names("forward", *DIRECTIONS)
    # Divides the logits; divergences are multiplied by its square.
    temperature: float = number(1.0, above=0)
    # Weight of the divergence from the model without its LoRA on views at rate 0, against forgetting; 0 disables it.
    base_weight: float = number(0.0, least=0)

    @property
    def alone(self) -> bool:
        """True if the teaching view is not trained."""
        return self.weight > 0 and self.teacher == "view" and not self.train_teacher

    @property
    def needs_base(self) -> bool:
        """True if a forward pass without LoRA is needed."""
        return bool(self.base_weight or (self.weight and self.teacher == "base"))


@dataclass
class TrainConfig:
    # Number of optimizer steps.
    steps: int = number(MISSING, least=1)
    # Samples per micro-batch and data-parallel rank; not used with train.token_budget.
    batch_size: int = number(1, least=1)
    # Greatest number of tokens of a micro-batch after pruning, in all views together; null uses train.batch_size.
    # It bounds memory: engine.sequence_parallel ranks share it. Micro-batches are filled to equal cost, see
    # train.cost_budget.
    token_budget: int | None = number(None, least=1)
    # Greatest number of patches of a micro-batch that enter the vision tower; null sets no limit.
    patch_budget: int | None = number(None, least=1)
    # Cost of a micro-batch in TFLOP of forward, backward and recomputation, so that ranks take equally long; auto
    # uses 90 % of what token_budget tokens cost at the lowest rate, null makes micro-batches equal in tokens.
    cost_budget: str | None = names("auto", "auto", pattern=NUMBER)
    # Number of further samples among which the planner searches for those that fill a step.
    lookahead: int = number(256, least=1)
    # Micro-batches per step and rank, each with its own rate.
    accumulation: int = number(1, least=1)
    # Number of distinct rates, so that sequence lengths recur; null draws any rate.
    rate_levels: int | None = number(64, least=2)
    # Draw a rate for each video instead of one per micro-batch; budgets assume the lowest.
    rate_per_video: bool = False
    # Pruning rates at which each micro-batch is trained in a step, one from each of as many equal shares of the
    # distribution. Media are decoded and encoded once. The loss is the mean over these views.
    views: int = number(1, least=1)
    # Fixed rate of one view, 0 for an unpruned one; null draws the rates of all views.
    anchor_rate: float | None = number(None, least=0, below=1)
    distill: DistillConfig = field(default_factory=DistillConfig)
    # Keep the inputs of the language model's recomputed layers in host memory until the backward pass: slower, and for
    # each layer one hidden state per token less on the GPU.
    offload_activations: bool = False
    # Steps between checkpoints.
    save_every: int = number(500, least=1)
    # Number of newest checkpoints to keep, in addition to the best.
    keep: int = number(2, least=1)
    # Steps between reports of metrics.
    log_every: int = number(10, least=1)
    # Decay of an exponential moving average of the weights, saved with them; null disables it.
    ema: float | None = number(None, above=0, below=1)
    # Number of consecutive steps with a non-finite loss or gradient after which the run ends; each is skipped.
    max_bad_steps: int = number(5, least=1)
    # Signals upon which the run saves and exits with status 85.
    signals: list[str] = names(list(DEFAULT), *SIGNALS)


@dataclass
class EvalConfig:
    # Steps between evaluations; 0 evaluates at the beginning and the end only.
    every: int = number(500, least=0)
    # Pruning rates at which accuracy is measured.
    rates: list[float] = pruning_rates([0.0, 0.5, 0.75, 0.9])
    # Samples per forward pass of an evaluation.
    batch_size: int = number(1, least=1)
    # Number of samples to evaluate; null evaluates all.
    limit: int | None = number(None, least=1)
    # Greatest number of generated tokens of an answer whose row names a metric.
    new_tokens: int = number(64, least=1)


@dataclass
class TrackerConfig:
    # Log to Weights & Biases; offline without an API key or network.
    wandb: bool = True
    # Write TensorBoard event files to the run's folder.
    tensorboard: bool = True
    # Write the samples and rates of every micro-batch to batches.jsonl.
    batches: bool = False
    # Project in Weights & Biases.
    project: str = "evs-uptrain"
    # Name of the run in Weights & Biases and on the model card; null uses the name of its folder.
    name: str | None = None


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    # _target_ and arguments of the rate distribution, set by the group rate=.
    rate: dict[str, Any] = MISSING
    # _target_ and arguments of the pruning method, or a list of methods to draw from; set by the group method=.
    method: dict[str, Any] = MISSING
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    # Folder of the run; the experiments use runs/EXPERIMENT.
    run_dir: str = MISSING
    # null starts a new run, auto continues from the newest checkpoint if there is one, a folder from that checkpoint.
    resume: str | None = None
    # Settings that may differ from the resumed run, as named by the error that refuses the resume.
    resume_changes: list[str] = names([], *RESUMABLE)
    # null forecasts memory and stops if it cannot suffice, dry_run also measures it by a forward and backward pass of
    # the largest micro-batch, only prints the forecast and exits, off skips it.
    preflight: str | None = names(None, "only", "dry_run", "off")
    # Before the first step, print the trained parameters and one row as the model reads it.
    show: bool = True
    # Seed of the data order, rates, LoRA's initial weights and dropout.
    seed: int = number(0, least=0, below=2**63)


def frame_policy(data: DataConfig) -> FramePolicy:
    """The sampling of frames and pixels. Raise ValueError if its values contradict each other."""
    return FramePolicy(**{entry.name: getattr(data, entry.name) for entry in fields(FramePolicy)})
