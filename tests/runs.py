"""Configurations as the command line composes them, and runs of them in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module

from train.checks import check
from train.cli import launcher
from train.config import Config
from train.run import register, typed

ROOT = Path(__file__).parents[1]


def composed(*words: str) -> Config:
    register()
    with initialize_config_module("configs", version_base="1.3"):
        return typed(compose("config", overrides=list(words)))


def trained(*words: str) -> Config:
    """The run that `python train/run.py WORDS` would be, in this process."""
    from train.build import build_run
    from train.loop import fit

    config = composed(*words)
    check(config)
    if (run := build_run(config)) is not None:
        fit(run)
    return config


def started(*words: str, ranks: int = 1) -> subprocess.Popen[str]:
    """`python train/run.py WORDS` in processes of its own, under torchrun where there are several ranks."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher(ranks), str(ROOT / "train" / "run.py"), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str], timeout: float = 300) -> tuple[int, str]:
    """(exit status, everything it printed)."""
    printed, _ = process.communicate(timeout=timeout)
    return process.returncode, printed


def rows(run_dir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """A run's lines so far; the one being written is left out."""
    path = run_dir / name
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def reached(process: subprocess.Popen[str], run_dir: Path, step: int, timeout: float = 120) -> None:
    """Waits until the run has reported `step`."""
    until = time.monotonic() + timeout
    while not any(row["step"] >= step for row in rows(run_dir)):
        assert process.poll() is None, ended(process)[1][-3000:]
        assert time.monotonic() < until, f"step {step} was not reported within {timeout} s"
        time.sleep(0.05)
