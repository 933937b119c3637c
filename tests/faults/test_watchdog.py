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
from filelock import FileLock

from tests.runs import trained

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


def ended_by_the_watchdog(words: list[str], **environment: str) -> str:
    """The error line of a run that hangs before its first step."""
    command = [sys.executable, str(ROOT / "train" / "run.py"), *words, "engine.timeout_minutes=0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "engine.timeout_minutes" in error
    return error


def test_a_hang_in_the_imports_ends_the_run(words, tmp_path):
    (tmp_path / "submitit").mkdir()
    (tmp_path / "submitit" / "__init__.py").write_text("import time\ntime.sleep(600)\n")
    assert "rank 0 in imports; " in ended_by_the_watchdog(words(), PYTHONPATH=str(tmp_path))


def test_a_hang_in_the_index_ends_the_run(words, tmp_path):
    trained(*words("preflight=only"))
    parts = list(tmp_path.glob(".evs/*/*"))
    held = [FileLock(f"{part}.lock") for part in parts]
    for part, lock in zip(parts, held):
        part.unlink()
        lock.acquire()
    assert parts and "rank 0 in index; " in ended_by_the_watchdog(words())
    assert "most recent call first" in (tmp_path / "run" / "stall" / "rank_0.txt").read_text()
    for lock in held:
        lock.release()
