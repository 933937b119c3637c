"""The memory that the preflight forecasts beside the peak that a run of train/run.py reports, run by run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.progress import progress_bar
from scripts.bench.timing import ROOT, table
from scripts.bench.training_data import prepare
from train.cli import launcher

FOLDER = Path("runs/benchmark/forecast").absolute()
STEPS = 3


@dataclass(frozen=True)
class Job:
    """One run. `first_steps`: after which it was resumed, 0 for a fresh one."""

    engine: str
    ranks: int
    checkpointing: bool
    first_steps: int = 0

    @property
    def name(self) -> str:
        return f"{self.engine}_{self.ranks}_{self.checkpointing}_{self.first_steps}".lower()


JOBS = (
    Job("none", 1, True),
    Job("none", 1, False),
    Job("none", 1, True, first_steps=1),
    Job("ddp", 2, True),
    Job("ddp", 2, False),
    Job("zero2", 1, True),
    Job("zero2", 2, True),
    Job("zero2", 2, True, first_steps=1),
    Job("zero3", 2, True),
    Job("zero3", 2, False),
)


def forecast(rounds: int) -> dict[str, Any]:
    """GiB of one rank, forecast and measured, of each of the jobs; `rounds` is without effect: memory does not vary."""
    made = prepare(FOLDER / "data")
    found = [_run(job, made.model, made.ours) for job in progress_bar(JOBS, unit="run")]
    rows = [
        (job.engine, job.ranks, "on" if job.checkpointing else "off", "resumed" if job.first_steps else "fresh", *cells)
        for job, one in zip(JOBS, found)
        for cells in [(f"{one['forecast_gib']:.2f}", f"{one['peak_memory_gib']:.2f}", f"{ratio(one):.2f}")]
    ]
    print(table(("engine", "ranks", "checkpointing", "start", "forecast", "peak", "forecast / peak"), rows))
    return {job.name: one for job, one in zip(JOBS, found)}


def ratio(one: dict[str, float]) -> float:
    return one["forecast_gib"] / one["peak_memory_gib"]


def _run(job: Job, model: Path, data: Path) -> dict[str, float]:
    """What the run's summary says."""
    folder = FOLDER / job.name
    shutil.rmtree(folder, ignore_errors=True)
    for steps in (*[job.first_steps] * bool(job.first_steps), STEPS):
        _train(job, steps, folder, f"model.path={model}", f"data.train={data}")
    summary = json.loads((folder / "summary.json").read_text())
    shutil.rmtree(folder)
    return {key: summary[key] for key in ("forecast_gib", "peak_memory_gib")}


def _train(job: Job, steps: int, folder: Path, *words: str) -> None:
    given = [
        "+experiment=qwen_evs_uptrain",
        f"engine={job.engine}",
        f"run_dir={folder}",
        f"train.steps={steps}",
        *words,
    ]
    given += [f"model.gradient_checkpointing={job.checkpointing}", "model.freeze=[]", "train.batch_size=4"]
    given += ["train.accumulation=2", "train.log_every=1", "data.workers=0", "rate=constant", "rate.rate=0"]
    given += ["tracker.wandb=false", "resume=auto", "optim.warmup=0", "optim.final_lr=1"]
    done = subprocess.run(
        [sys.executable, *launcher(job.ranks), str(ROOT / "train" / "run.py"), *given],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ValueError(f"{job.name} ended with status {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
