"""A scheduler's signal in the middle of a step of two ranks: saved at its end, and no step is lost."""

from __future__ import annotations

import signal

import psutil
import pytest

from tests.faults.trajectories import assert_same_trajectory
from tests.runs import ended, reached, rows, started
from train.checkpoint.checkpoint import complete


@pytest.mark.parametrize("to", ["the launcher", "one rank"])
def test_two_ranks_save_on_a_signal_and_resume_without_losing_a_step(line, tmp_path, to):
    words = ["engine=zero2", "train.steps=10", "train.accumulation=1", "data.workers=1", "resume=auto"]
    process = started(*line(*words, run_dir=tmp_path / "run"), ranks=2)
    reached(process, tmp_path / "run", 3)
    if to == "the launcher":
        process.send_signal(signal.SIGTERM)
    else:
        psutil.Process(process.pid).children()[-1].send_signal(signal.SIGUSR1)
    code, printed = ended(process)
    assert code != 0 and "stopped by a signal" in printed, printed[-3000:]
    done = rows(tmp_path / "run")[-1]["step"]
    assert complete(tmp_path / "run" / "checkpoints")[-1].name == f"step_{done:08d}"
    for name in ("run", "whole"):
        code, printed = ended(started(*line(*words, run_dir=tmp_path / name), ranks=2))
        assert code == 0, printed[-3000:]
    assert_same_trajectory(tmp_path / "run", tmp_path / "whole")
