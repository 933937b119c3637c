"""The contenders as command lines: ours, and each peer's own way of starting the same full fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.bench.peers.material import BenchmarkData
from scripts.bench.timing import ROOT

PROGRAMS = Path(__file__).parent / "programs"
LENGTH = 1024  # tokens of a packed row: two of the rows fit
BATCHES = {"batch 1": 1, "batch 2": 2}
PACKED = "packed"
MODES = (*BATCHES, PACKED)
RATES = {"ours at 0": ("constant", 0.0), "ours at .75": ("constant", 0.75), "ours uniform": ("uniform", None)}


@dataclass(frozen=True)
class Job:
    """The settings of one process."""

    mode: str  # of MODES
    steps: int
    material: BenchmarkData
    attention: str
    workers: int
    cpu: bool
    folder: Path  # for the files of this process
    bin: Path  # programs of the contender's environment

    @property
    def batch(self) -> int:
        return BATCHES.get(self.mode, 1)


@dataclass(frozen=True)
class Framework:
    """A framework: `words` is the command line of a job in it."""

    name: str
    words: Callable[[Job], list[str]]
    requires: tuple[str, ...] = ()  # packages to install on top of the benchmark's environment
    empty: tuple[str, ...] = ()  # modules that it imports and never uses, and that an empty one stands in for
    lacks: Mapping[str, str] = field(default_factory=dict)  # mode -> why it cannot be had
    variables: Mapping[str, str] = field(default_factory=dict)


def ours(name: str) -> Framework:
    """`python train/run.py` at one of RATES."""
    return Framework(name, lambda job: _our_words(job, *RATES[name]))


def _our_words(job: Job, distribution: str, rate: float | None) -> list[str]:
    budget = f"train.token_budget={LENGTH}" if job.mode == PACKED else f"train.batch_size={job.batch}"
    return [
        *(str(job.bin / "python"), str(ROOT / "train" / "run.py"), "+experiment=qwen_evs_uptrain", "engine=none"),
        *(f"model.path={job.material.model}", f"data.train={job.material.ours}", f"run_dir={job.folder / 'run'}"),
        *(f"rate={distribution}", *([] if rate is None else [f"rate.rate={rate}"]), "method=evs"),
        *("model.freeze=[]", "model.gradient_checkpointing=false", f"model.attention={job.attention}"),
        *(f"train.steps={job.steps + 1}", "train.accumulation=1", budget, "train.log_every=1", "optim.lr=1e-5"),
        *(f"data.workers={job.workers}", "tracker.wandb=false", "eval.every=0"),
    ]


def _training(job: Job) -> dict[str, Any]:
    """The arguments that transformers' Trainer and all that are made of it share."""
    return {
        "output_dir": str(job.folder / "out"),
        "max_steps": job.steps + 1,
        "per_device_train_batch_size": job.batch,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "learning_rate": 1e-5,
        "bf16": True,
        "use_cpu": job.cpu,
        "dataloader_num_workers": job.workers,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }


def _program(name: str) -> Callable[[Job], list[str]]:
    """A program of ours over a library that has no command line for this."""

    def words(job: Job) -> list[str]:
        given = {
            "model": str(job.material.model),
            "rows": str(job.material.peers),
            "attention": job.attention,
            "training": _training(job) | {"train_sampling_strategy": "sequential"},
        }
        path = job.folder / "arguments.json"
        path.write_text(json.dumps(given))
        return [str(job.bin / "python"), str(PROGRAMS / name), str(path)]

    return words


def _llamafactory(job: Job) -> list[str]:
    table = {"formatting": "sharegpt", "columns": {"messages": "messages", "videos": "videos"}}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    listed = {"rows": table | {"file_name": str(job.material.peers), "tags": tags}}
    (job.folder / "dataset_info.json").write_text(json.dumps(listed))
    given = {
        **_training(job),
        **{"model_name_or_path": str(job.material.model), "template": "qwen2_vl", "stage": "sft", "do_train": True},
        **{"finetuning_type": "full", "freeze_vision_tower": False, "freeze_multi_modal_projector": False},
        **{"dataset": "rows", "dataset_dir": str(job.folder), "overwrite_cache": True, "video_fps": 2.0},
        **{"cutoff_len": LENGTH, "disable_shuffling": True, "neat_packing": job.mode == PACKED},
        "flash_attn": {"sdpa": "sdpa", "flash_attention_2": "fa2"}.get(job.attention, "auto"),
        "disable_gradient_checkpointing": True,
    }
    del given["gradient_checkpointing"]
    path = job.folder / "arguments.yaml"  # which JSON is, too
    path.write_text(json.dumps(given))
    return [str(job.bin / "llamafactory-cli"), "train", str(path)]


def _ms_swift(job: Job) -> list[str]:
    given = {
        **_training(job),
        **{"model": job.material.model, "model_type": "qwen2_5_vl", "template": "qwen2_5_vl"},
        **{"dataset": job.material.peers, "split_dataset_ratio": 0, "torch_dtype": "float32"},
        **{"tuner_type": "full", "freeze_vit": False, "freeze_aligner": False, "freeze_llm": False},
        **{"dataset_shuffle": False, "train_dataloader_shuffle": False, "max_length": LENGTH},
        **{"attn_impl": job.attention, "packing": job.mode == PACKED, "vit_gradient_checkpointing": False},
        **{"dataset_num_proc": 1, "fp16": False, "external_plugins": PROGRAMS / "swift_ids.py"},
    }
    words = [word for key, value in given.items() for word in (f"--{key}", _text(value))]
    return [str(job.bin / "swift"), "sft", *words]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


PEERS = {
    "trl": Framework(
        *("TRL", _program("train_trl.py"), ("trl==1.16.0",)),
        lacks={PACKED: "TRL refuses packing and padding_free for vision data"},
    ),
    "llamafactory": Framework(
        *("LLaMA-Factory", _llamafactory, ("llamafactory==0.9.5",)),
        empty=("torchaudio",),  # its newest release refuses newer builds of torch at import
    ),
    "ms_swift": Framework(
        *("ms-swift", _ms_swift, ("ms-swift==4.6.0", "qwen-vl-utils", "decord")),
        variables={"FORCE_QWENVL_VIDEO_READER": "decord", "FPS": "2", "VIDEO_MIN_TOKEN_NUM": "4"},
    ),
    "trainer": Framework(
        *("transformers' Trainer", _program("train_plain.py")),
        lacks={PACKED: "transformers' Trainer packs text alone"},
    ),
}
