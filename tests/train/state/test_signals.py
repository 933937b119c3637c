"""A run that is asked to end saves at the end of its step and says by its exit status that it wants to continue."""

from __future__ import annotations

import signal

import pytest

from tests.runs import ended, reached, rows, started, trained
from train.state.checkpoint import complete

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("more", "number", "status"),
    [([], signal.SIGTERM, 85), (["train.signals=[SIGUSR2]"], signal.SIGUSR2, 85), ([], signal.SIGINT, 130)],
    ids=["SIGTERM", "SIGUSR2", "SIGINT"],
)
def test_a_signal_saves_and_the_resumed_run_loses_no_step(words, tmp_path, more, number, status):
    steps = ["train.steps=12", "data.workers=1", *more]
    run = tmp_path / "run"
    process = started(*words(*steps, "resume=auto", run_dir=run))
    reached(process, run, 2)
    process.send_signal(number)
    code, printed = ended(process)
    assert code == status, printed[-3000:]
    done = rows(run)[-1]["step"]
    assert 2 <= done < 12 and complete(run / "checkpoints")[-1].name == f"step_{done:08d}"
    trained(*words(*steps, "resume=auto", run_dir=run))
    trained(*words(*steps, run_dir=tmp_path / "whole"))
    assert [row["loss"] for row in rows(run)] == [row["loss"] for row in rows(tmp_path / "whole")]


def test_a_second_interrupt_ends_at_once(words, tmp_path):
    process = started(*words("train.steps=4000", "train.batch_size=8"))
    reached(process, tmp_path / "run", 1)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    code, _ = ended(process)
    assert code not in (0, 85)
