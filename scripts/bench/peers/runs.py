"""One process of one contender: started, timed by the hook inside it, and its record kept, so that it is done once."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench.peers.contenders import RATES, Framework, Job
from scripts.bench.processes import reason, run_limited
from scripts.bench.records import fingerprint, read_json, write_json

HERE = Path(__file__).parent
HOOK = HERE / "hook"
SHARED = tuple(f"scripts/bench/peers/{name}" for name in ("hook", "programs", "contenders.py", "material.py"))
OURS = ("train", "evs", "data", "configs")
LIMIT = 900  # seconds of one process


class Failed(Exception):
    """A contender's process ended without a record; the message says why, in one line."""


@dataclass(frozen=True)
class Settings:
    """What holds for all processes."""

    threads: int
    cpu: bool


def record(contender: Framework, job: Job, settings: Settings) -> dict[str, Any]:
    """What the hook wrote in the job's process; from an earlier one where nothing has changed since. Raises Failed."""
    path, key = job.folder.with_suffix(".json"), _key(contender, job, settings)
    if (known := read_json(path)) and known["key"] == key:
        return known
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    _run(contender, job, settings)
    found = json.loads((job.folder / "record.json").read_text())
    write_json(path, found | {"key": key})
    shutil.rmtree(job.folder)
    return found


def _key(contender: Framework, job: Job, settings: Settings) -> str:
    """Everything that a record depends on."""
    code = fingerprint(*SHARED, *OURS) if contender.name in RATES else fingerprint(*SHARED)
    return repr((contender.name, contender.requires, job, settings, code))


def _run(contender: Framework, job: Job, settings: Settings) -> None:
    log = job.folder / "log.txt"
    variables = _variables(contender, job, settings) | {"PEERS_BEGAN": repr(time.time())}
    if run_limited(contender.words(job), log, LIMIT, job.folder, variables) is None:
        raise Failed(f"had not done {job.steps} steps after {LIMIT} s")
    if not (job.folder / "record.json").exists():
        raise Failed(reason(log.read_text(errors="replace")))


def _variables(contender: Framework, job: Job, settings: Settings) -> dict[str, str]:
    """Nothing is fetched, no cache outlives the process, and of several GPUs the first is used."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return {
        **{"PYTHONPATH": str(HOOK), "PEERS_RECORD": str(job.folder / "record.json"), "PEERS_STEPS": str(job.steps)},
        **{"OMP_NUM_THREADS": str(settings.threads), "TOKENIZERS_PARALLELISM": "false"},
        **{"HF_HUB_OFFLINE": "1", "HF_HOME": str(job.folder / "hf"), "MODELSCOPE_CACHE": str(job.folder / "ms")},
        "CUDA_VISIBLE_DEVICES": "" if settings.cpu else gpu,
        **contender.variables,
    }
