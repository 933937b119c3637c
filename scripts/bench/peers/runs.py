"""One process of one contender: started, timed by the hook inside it, and its record kept, so that it is done once."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from scripts.bench.peers.contenders import RATES, Framework, Job
from scripts.bench.timing import ROOT

HERE = Path(__file__).parent
HOOK = HERE / "hook"
SHARED = tuple(str(HERE / name) for name in ("hook", "programs", "contenders.py", "material.py"))
OURS = ("train", "evs", "data", "configs")
ERROR = re.compile(r"^(?:\[rank\d\]: )?(?:[\w.]*(?:Error|Exception)|error): *(.+)")
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
    if path.exists() and (known := json.loads(path.read_text()))["key"] == key:
        return known
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    _run(contender, job, settings)
    found = json.loads((job.folder / "record.json").read_text())
    path.write_text(json.dumps(found | {"key": key}))
    shutil.rmtree(job.folder)
    return found


def _key(contender: Framework, job: Job, settings: Settings) -> str:
    """Everything that a record depends on."""
    code = _code(*SHARED, *OURS) if contender.name in RATES else _code(*SHARED)
    return repr((contender.name, contender.requires, job, settings, code))


@lru_cache
def _code(*paths: str) -> str:
    """The state of the working tree's `paths`."""
    git = [["git", "log", "-1", "--format=%H", "--", *paths], ["git", "diff", "HEAD", "--", *paths]]
    return "".join(subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout for words in git)


def _run(contender: Framework, job: Job, settings: Settings) -> None:
    log, begin = job.folder / "log.txt", time.time()
    with log.open("w") as file:
        process = subprocess.Popen(
            contender.words(job),
            cwd=job.folder,
            env=os.environ | _variables(contender, job, settings) | {"PEERS_BEGAN": repr(begin)},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise Failed(f"had not done {job.steps} steps after {LIMIT} s") from None
        finally:
            _end(process)
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


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of the process's own session: loaders' workers, launchers."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def reason(log: str) -> str:
    """The last error of a log, or its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    found = [line for line in lines if ERROR.match(line)]
    return (found or lines or ["it printed nothing"])[-1][:300]
