"""The frameworks as command lines: ours, and each peer's own way to start the same full fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from scripts.bench.peers.figures import PRUNED, REFERENCE, UNIFORM
from scripts.bench.timing import ROOT
from scripts.bench.training_data import BenchmarkData

PROGRAMS = Path(__file__).parent / "programs"
PACKED_TOKENS = 1024  # of a packed row: two of the rows fit
PACKED = "packed"
BATCH_SIZES = {"batch 1": 1, "batch 2": 2, PACKED: 1}  # by mode
LEARNING_RATE = 1e-4
RATES = {PRUNED: "0.75", UNIFORM: "uniform"}  # by the end of a name
OUR_SETTINGS = """
    engine=none train.accumulation=1 optim.warmup=0 optim.final_lr=1 optim.betas=[0.9,0.999] model.freeze=[]
    model.gradient_checkpointing=false data.workers=1 train.log_every=1 tracker.wandb=false eval.every=0
"""
SWIFT_SETTINGS = """
    --gradient_checkpointing false --vit_gradient_checkpointing false --fp16 false --torch_dtype float32
    --model_type qwen2_5_vl --template qwen2_5_vl --tuner_type full --freeze_vit false --freeze_aligner false
    --freeze_llm false --split_dataset_ratio 0 --dataset_num_proc 1 --dataset_shuffle false
    --train_dataloader_shuffle false --callbacks pruning --use_logits_to_keep false
"""


@dataclass(frozen=True)
class Job:
    """The settings of one process."""

    mode: str  # a key of BATCH_SIZES
    steps: int
    data: BenchmarkData
    attention: str
    precision: str  # bf16 or fp32
    cpu: bool
    folder: Path  # for the files of this process
    programs: Path  # executables of the framework's environment


@dataclass(frozen=True)
class Framework:
    """A framework: `command` gives the command line of a job in it."""

    name: str
    command: Callable[[Job], list[str]]
    requires: tuple[str, ...] = ()  # packages to install in addition to the benchmark's environment
    empty: tuple[str, ...] = ()  # modules that it imports without using them, to be replaced by empty ones
    shared: tuple[str, ...] = ()  # packages of the benchmark's environment that replace those it installs
    packs: bool = True  # whether it packs rows that hold videos
    rate: str = "0"  # of evs.transformers.enable_pruning, a number or uniform; 0: the stock model
    environment: Mapping[str, str] = field(default_factory=dict)

    def with_pruning(self, end: str = PRUNED) -> Framework:
        """The same framework with pruning enabled on its model."""
        return replace(self, name=self.name + end, rate=RATES[end])


def _ours(rate: str, job: Job) -> list[str]:
    """`python train/run.py` at a distribution of pruning rates, given as further arguments."""
    batch = f"train.token_budget={PACKED_TOKENS}" if job.mode == PACKED else f"train.batch_size={BATCH_SIZES[job.mode]}"
    return [
        *(str(job.programs / "python"), str(ROOT / "train" / "run.py"), "+experiment=qwen_evs_uptrain", "method=evs"),
        *(f"model.path={job.data.model}", f"data.train={job.data.ours}", f"run_dir={job.folder / 'run'}", batch),
        *(f"train.steps={job.steps + 1}", f"optim.lr={LEARNING_RATE}", f"engine.precision={job.precision}"),
        *(f"model.attention={job.attention}", *rate.split(), *OUR_SETTINGS.split()),
    ]


def _training_arguments(job: Job) -> dict[str, Any]:
    """The arguments of transformers' Trainer, which all peers build on."""
    return {
        **{"output_dir": str(job.folder / "out"), "max_steps": job.steps + 1, "logging_steps": 1},
        **{"per_device_train_batch_size": BATCH_SIZES[job.mode], "gradient_accumulation_steps": 1},
        **{"learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "weight_decay": 0.0, "adam_beta2": 0.999},
        **{"bf16": job.precision == "bf16", "use_cpu": job.cpu, "dataloader_num_workers": 1},
        **{"save_strategy": "steps", "save_steps": job.steps + 1, "report_to": "none"},
    }


def _python(program: str, arguments: dict[str, Any], job: Job) -> list[str]:
    """One of our programs around a library that has no command line for this, with its arguments as JSON."""
    path = job.folder / "arguments.json"
    path.write_text(json.dumps(arguments))
    return [str(job.programs / "python"), str(PROGRAMS / program), str(path)]


def _program(trainer: str, job: Job) -> list[str]:
    training = {"gradient_checkpointing": False, "train_sampling_strategy": "sequential"}
    arguments = {
        **{"trainer": trainer, "model": str(job.data.model), "rows": str(job.data.peers)},
        **{"attention": job.attention, "training": _training_arguments(job) | training},
    }
    return _python("train.py", arguments, job)


def _llamafactory(job: Job) -> list[str]:
    rows = {
        **{"file_name": str(job.data.peers), "formatting": "sharegpt"},
        "columns": {"messages": "messages", "videos": "videos"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
    (job.folder / "dataset_info.json").write_text(json.dumps({"rows": rows}))
    arguments = {
        **_training_arguments(job),
        **{"model_name_or_path": str(job.data.model), "template": "qwen2_vl", "stage": "sft", "do_train": True},
        **{"finetuning_type": "full", "freeze_vision_tower": False, "freeze_multi_modal_projector": False},
        **{"dataset": "rows", "dataset_dir": str(job.folder), "overwrite_cache": True, "video_fps": 2.0},
        **{"cutoff_len": PACKED_TOKENS, "disable_shuffling": True, "neat_packing": job.mode == PACKED},
        **{"flash_attn": {"flash_attention_2": "fa2"}.get(job.attention, job.attention)},
        **{"disable_gradient_checkpointing": True},
    }
    return _python("llama_factory.py", arguments, job)


def _ms_swift(job: Job) -> list[str]:
    arguments = _training_arguments(job) | {
        **{"model": str(job.data.model), "dataset": str(job.data.peers), "attn_impl": job.attention},
        **{"max_length": PACKED_TOKENS, "packing": job.mode == PACKED},
        "external_plugins": str(PROGRAMS / "swift_plugin.py"),
    }
    words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in arguments.items()}
    own = (word for key in words for word in (f"--{key}", words[key]))
    return [str(job.programs / "swift"), "sft", *own, *SWIFT_SETTINGS.split()]


OURS = (
    Framework(REFERENCE, partial(_ours, "rate=constant rate.rate=0")),
    Framework("ours" + PRUNED, partial(_ours, "rate=constant rate.rate=0.75")),
    Framework("ours" + UNIFORM, partial(_ours, "rate=uniform")),
)
PEERS = {
    "trl": Framework("TRL", partial(_program, "trl"), ("trl==1.16.0",), packs=False),
    "llamafactory": Framework(
        *("LLaMA-Factory", _llamafactory, ("llamafactory==0.9.5",)),
        empty=("torchaudio",),  # its newest release refuses newer builds of torch at import
        shared=("transformers", "tokenizers", "huggingface_hub"),  # it pins a transformers that pruning cannot use
        environment={"DISABLE_VERSION_CHECK": "1"},
    ),
    "ms_swift": Framework(
        *("ms-swift", _ms_swift, ("ms-swift==4.6.0", "qwen-vl-utils", "decord")),
        environment={"FORCE_QWENVL_VIDEO_READER": "decord", "FPS": "2", "VIDEO_MIN_TOKEN_NUM": "4"},
    ),
    "trainer": Framework("transformers' Trainer", partial(_program, "trainer"), packs=False),
}
