"""One training process of a framework."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from scripts.bench.peers import environments, figures
from scripts.bench.peers.frameworks import BATCH_SIZES, Framework, Job
from scripts.bench.processes import run_limited
from scripts.bench.records import fingerprint, read_json, write_json
from scripts.bench.timing import ROOT
from scripts.bench.training_data import prepare

CODE = (  # what the records depend on
    *("scripts/bench/peers", "scripts/bench/training_data.py", "scripts/check_serving.py", "scripts/serving"),
    *("train", "evs", "data", "configs"),
)
LIMIT = 900  # seconds of one process


def job_of(framework: Framework, mode: str, turn: int, folder: Path, *, samples: int, precision: str) -> Job:
    """The settings of a process, in an environment that is built if it is not there."""
    environment, cpu = folder / "environments" / "".join(framework.requires[:1]), not torch.cuda.is_available()
    return Job(
        mode=mode,
        steps=figures.WARMUP - samples // -BATCH_SIZES[mode],
        data=prepare(folder / f"data_{fingerprint('scripts/bench/training_data.py')}"),
        attention="flash_attention_2" if not cpu and find_spec("flash_attn") else "sdpa",
        precision=precision,
        cpu=cpu,
        folder=folder / "records" / re.sub(r"\W+", "_", f"{framework.name} {mode} {turn}"),
        programs=environments.build(environment, framework.requires, framework.empty, framework.shared),
    )


def run_or_reuse(framework: Framework, job: Job, run: Callable[[], dict[str, Any]], server: str = "") -> dict[str, Any]:
    """The record that `run` returns, or an earlier one that the same code has made with the same settings."""
    path, key = job.folder.with_suffix(".json"), repr((job, framework.requires, server, fingerprint(*CODE)))
    earlier = read_json(path)
    if earlier and earlier["key"] == key:
        return earlier
    record = run() | {"key": key}
    write_json(path, record)
    return record


def run_to_end(framework: Framework, job: Job, environment: Mapping[str, str]) -> str:
    """Run a new process and return its log. Raise ValueError if it takes longer than LIMIT."""
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    log = job.folder / "log.txt"
    environment = {  # nothing is downloaded and no cache survives the process
        **{"PYTHONPATH": str(ROOT), "PEERS_RATE": framework.rate, "PEERS_BEGAN": repr(time.time())},
        **{"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
        **{"HF_HOME": str(job.folder / "hf"), "MODELSCOPE_CACHE": str(job.folder / "ms")},
        "CUDA_VISIBLE_DEVICES": "" if job.cpu else os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
        **framework.environment,
        **environment,
    }
    if run_limited(framework.command(job), log, LIMIT, job.folder, environment) is None:
        raise ValueError(f"not done with {job.steps} steps after {LIMIT} s")
    return log.read_text(errors="replace")
