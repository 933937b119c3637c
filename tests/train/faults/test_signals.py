"""A run that is asked to end saves at the end of its step and says by its exit status that it wants to continue."""

from __future__ import annotations

import signal

import pytest

from tests.runs import ended, reached, rows, started, trained
from train.checkpoint.checkpoint import complete

pytestmark = pytest.mark.slow


def test_a_run_that_sigterm_ended_resumes_without_losing_a_step(words, tmp_path):
    run, steps = tmp_path / "run", ["train.steps=6", "data.workers=1"]
    process = started(*words(*steps, run_dir=run))
    reached(process, run, 2)
    process.send_signal(signal.SIGTERM)
    code, printed = ended(process)
    assert code == 85, printed[-3000:]
    done = rows(run)[-1]["step"]
    assert 2 <= done < 6 and complete(run / "checkpoints")[-1].name == f"step_{done:08d}"
    trained(*words(*steps, "resume=auto", run_dir=run))
    trained(*words(*steps, run_dir=tmp_path / "whole"))
    assert [row["loss"] for row in rows(run)] == [row["loss"] for row in rows(tmp_path / "whole")]


@pytest.mark.parametrize(
    ("more", "number", "status"),
    [(["train.signals=[SIGUSR2]"], signal.SIGUSR2, 85), ([], signal.SIGINT, 130)],
    ids=["SIGUSR2", "SIGINT"],
)
def test_other_signals_and_an_interrupt_save_too(words, tmp_path, more, number, status):
    process = started(*words("train.steps=1000", *more))
    reached(process, tmp_path / "run", 1)
    process.send_signal(number)
    assert ended(process)[0] == status
    assert complete(tmp_path / "run" / "checkpoints")


def test_a_signal_before_the_first_step_asks_to_be_started_again(words, tmp_path):
    process = started(*words())
    while not (tmp_path / "run" / "config.yaml").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    code, printed = ended(process)
    assert code == 85 and "nothing to save" in printed
