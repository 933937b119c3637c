"""Jobs of a sweep (`-m`). Each records how it ended; a failed job does not stop the others, a done one is skipped.

run_dir/3/job.json    {"overrides": ["optim.lr=2e-5", ...], "status": "done", "error": null}
                      other statuses: running (or killed), failed, preempted, interrupted
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write

from train import cli
from train.atomic_write import write_atomically
from train.faults.signals import INTERRUPTED, PREEMPTED, foreign_handler
from train.faults.watchdog import WATCHDOG
from train.run_folder import read_object

ENDED: dict[Any, str] = {PREEMPTED: "preempted", INTERRUPTED: "interrupted"}  # by exit status


@dataclass(frozen=True)
class Job:
    """The record of a job: the overrides it was started with and how it ended."""

    overrides: list[str]
    status: str
    error: str | None = None


def attempt(run: Callable[[bool], None], folder: Path, overrides: list[str]) -> None:
    """Call `run(restarted)` unless the job is done. A failure is recorded, and the sweep continues.

    A signal that ends the run also ends the sweep, and so does a failure of one of several ranks.
    """
    before = read(folder)
    if before == Job(overrides, "done"):
        print(f"{folder}: done before, skipped")
        return
    requeue = foreign_handler(signal.SIGUSR2)  # in SLURM jobs, submitit's handler, which training replaces
    write(folder, Job(overrides, "running"))
    try:
        run(before is not None)
        write(folder, Job(overrides, "done"))
    except SystemExit as end:
        status = ENDED.get(end.code)
        write(folder, Job(overrides, status or "failed", getattr(end, "message", f"exit status {end.code}")))
        if end.code == PREEMPTED and requeue is not None:
            requeue(signal.SIGUSR2, None)
        if status or _ranks_are_out_of_step():
            raise
    except Exception as error:
        write(folder, Job(overrides, "failed", " ".join(f"{type(error).__name__}: {error}".split())))
        if _ranks_are_out_of_step():
            raise
        traceback.print_exc()


def _ranks_are_out_of_step() -> bool:
    import torch.distributed as dist

    return dist.is_initialized() and dist.get_world_size() > 1


def read(folder: Path) -> Job | None:
    """The record in a job's folder; None if there is none."""
    path = folder / "job.json"
    try:
        return Job(**read_object(path)) if path.is_file() else None
    except TypeError as error:
        raise ValueError(f"{path}: not the record of a job ({error}); remove it") from None


def write(folder: Path, job: Job) -> None:
    """Replace the record atomically, on rank 0."""
    if int(os.environ.get("RANK", 0)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "job.json", json.dumps(asdict(job)) + "\n")


def jobs(folder: Path) -> dict[int, Job]:
    """The records of a sweep's jobs by number."""
    records = {int(path.name): read(path) for path in folder.iterdir() if path.name.isdigit()}
    return {number: job for number, job in sorted(records.items()) if job is not None}


class Sweep(Callback):
    """Hydra callback that fixes the sweep's folder at the beginning and lists failed jobs at the end."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        WATCHDOG.stop()  # a launcher waits for its jobs without a time limit
        HydraConfig.instance().set_config(config)  # the default run_dir reads it
        with read_write(config.hydra.overrides):  # another process would resolve them again
            config.run_dir = cli.expand_home(str(config.run_dir))
            config.hydra.overrides.hydra.append(cli.override("run_dir", config.run_dir))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if int(os.environ.get("RANK", 0)):
            return
        folder = Path(config.run_dir)
        records = jobs(folder)
        bad = [number for number, job in records.items() if job.status != "done"]
        done = len(records) - len(bad)
        print(f"sweep: {done} of {len(records)} jobs done; {cli.command('report', f'sweep={folder}')}")
        if bad:
            for number in bad:
                print(f"job {number} {records[number].status}: {records[number].error or ''}", file=sys.stderr)
            cli.fail(
                f"{len(bad)} of {len(records)} jobs of {folder} are not done: run the sweep again to retry them", 1
            )
