"""Under a real SLURM: a run that is requeued comes back by itself, and a sweep's broken job stops no other."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train.test_run import metrics
from train import sweep

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def run(env: dict[str, str], *command: str | Path) -> str:
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait(ready: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"not ready after {seconds} s"
        time.sleep(1)


def test_a_requeued_run_comes_back_and_ends_as_the_uninterrupted_one(slurm, words, tmp_path):
    env = {**slurm, "PYTHON": sys.executable}
    more = ["train.steps=12", "train.save_every=100", "engine=ddp", "engine.precision=fp32", "train.accumulation=1"]

    def submit(name: str) -> str:
        command = [ROOT / "scripts" / "slurm" / "train.sbatch", *words(*more, run_dir=tmp_path / name)]
        out = run(env, "sbatch", "--ntasks-per-node=2", f"--output={tmp_path / name}.log", *command)
        return re.findall(r"\d+", out)[-1]

    def state(job: str) -> str:
        return re.findall(r"JobState=(\w+)", run(env, "scontrol", "show", "job", job))[0]

    whole = submit("whole")
    wait(lambda: state(whole) == "COMPLETED", 200)
    broken = submit("broken")
    written = tmp_path / "broken" / "metrics.jsonl"
    wait(lambda: written.is_file() and len(written.read_text().splitlines()) >= 3, 200)
    run(env, "scontrol", "requeue", broken)
    wait(lambda: state(broken) == "COMPLETED", 400)  # SLURM itself holds a requeued job back for two minutes
    log = (tmp_path / "broken.log").read_text()
    assert "stopped by a signal" in log
    assert metrics(tmp_path / "broken", "loss") == metrics(tmp_path / "whole", "loss")
    assert metrics(tmp_path / "broken", "step") == list(range(1, 13))


def test_a_sweep_of_slurm_jobs_completes_all_but_the_broken_one(slurm, words, tmp_path):
    command = [sys.executable, "train/run.py", "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1"]
    command += words("train.steps=1", "optim.lr=1e-4,-1,1e-3,2e-3")
    done = subprocess.run(command, env=slurm, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stderr
    statuses = {number: job.status for number, job in sweep.jobs(tmp_path / "run").items()}
    assert statuses == {0: "done", 1: "failed", 2: "done", 3: "done"}
