"""A lock file in torch's folder of extensions never stops the ranks of a run without a message."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from tests.runs import ended, started

WORDS = ["engine=zero2", "train.steps=1", "train.accumulation=1"]


@pytest.fixture
def lock(tmp_path, monkeypatch) -> Path:
    """Torch's lock file for the operator that zero2 needs on CPUs."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    path = tmp_path / "extensions" / "deepspeed_shm_comm" / "lock"
    path.parent.mkdir(parents=True)
    return path


def test_a_hostile_lock_of_a_killed_build_does_not_stop_two_ranks(line, lock, tmp_path):
    lock.touch()
    code, printed = ended(started(*line(*WORDS, run_dir=tmp_path / "run"), ranks=2), timeout=300)
    assert code == 0, printed[-3000:]
    message = f"{lock}: removed, a killed build had left it"
    assert printed.count(message) == hasattr(cpp_extension, "FileBaton")  # later versions of torch ignore the file


def test_a_hostile_lock_that_is_held_ends_two_ranks_with_one_line_that_names_it(line, lock, tmp_path):
    held = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR)  # as a build that runs holds it
    fcntl.flock(held, fcntl.LOCK_EX)
    words = [*WORDS, "engine.timeout_minutes=0.1"]
    code, printed = ended(started(*line(*words, run_dir=tmp_path / "run"), ranks=2), timeout=300)
    os.close(held)
    assert code != 0 and lock.exists()
    error = next(text for text in printed.splitlines() if text.startswith("error:"))
    assert f"{lock} is held by process {os.getpid()}: end that build" in error
