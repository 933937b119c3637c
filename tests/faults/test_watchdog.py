"""A stall from outside: a data worker that hangs. Every rank writes where it is, and the run ends with one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def started(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(ROOT / "train" / "run.py"), *words],
        env=environment,
        stderr=log.open("wb"),
        stdout=log.open("ab"),
    )


def data_worker(run: subprocess.Popen[bytes], rank: int) -> psutil.Process | None:
    """The first process that a rank has forked to read data."""
    for process in psutil.Process(run.pid).children():
        if process.environ().get("RANK") == str(rank):
            return next((child for child in process.children() if "run.py" in " ".join(child.cmdline())), None)
    return None


def test_a_stall_is_reported_by_every_rank_and_ends_the_run(words, tmp_path):
    log, metrics = tmp_path / "log", tmp_path / "run" / "metrics.jsonl"
    more = ["train.steps=1000", "engine=ddp", "data.workers=1", "engine.timeout_minutes=0.15", "train.accumulation=1"]
    run = started(words(*more), log)
    while not metrics.is_file() or len(metrics.read_text().splitlines()) < 2:
        assert run.poll() is None, log.read_text()
        time.sleep(0.5)
    worker = data_worker(run, rank=1)
    assert worker is not None
    worker.send_signal(signal.SIGSTOP)
    run.wait(180)
    assert run.returncode != 0
    for rank in (0, 1):
        report = (tmp_path / "run" / "stall" / f"rank_{rank}.txt").read_text()
        assert report.startswith(f"rank {rank} of 2: ") and "most recent call first" in report
    assert "data, step " in (tmp_path / "run" / "stall" / "rank_1.txt").read_text()
    assert log.read_text().count("error: no progress for ") >= 1
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
