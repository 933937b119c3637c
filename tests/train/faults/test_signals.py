"""A run that is asked to end saves at the end of its step and says by its exit status that it wants to continue."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.runs import composed, ended, reached, rows, started, trained
from train.build import build_run
from train.checkpoint.checkpoint import complete
from train.faults.signals import Stop
from train.loop import fit

pytestmark = pytest.mark.slow


def test_a_run_that_sigterm_ended_resumes_without_losing_a_step(words, tmp_path):
    folder, more = tmp_path / "run", ["data.workers=1", "train.accumulation=1"]
    run = build_run(composed(*words(*more)))
    assert run is not None
    passes: list[int] = []

    def end(*_: object) -> None:
        passes.append(len(passes))
        if len(passes) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    hook = run.task.register_forward_pre_hook(end)
    assert fit(run) == 85
    hook.remove()
    assert rows(folder)[-1]["step"] == 2 and complete(folder / "checkpoints")[-1].name == "step_00000002"
    trained(*words(*more, "resume=auto"))
    trained(*words(*more, run_dir=tmp_path / "whole"))
    assert [row["loss"] for row in rows(folder)] == [row["loss"] for row in rows(tmp_path / "whole")]


def test_a_second_ctrl_c_ends_the_process_at_once():
    stop = Stop()
    stop.note(signal.SIGINT, None)
    assert stop.status == 130
    with pytest.raises(KeyboardInterrupt):
        stop.note(signal.SIGINT, None)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("more", "number", "status"),
    [
        (["data.workers=1"], signal.SIGTERM, 85),
        (["train.signals=[SIGUSR2]"], signal.SIGUSR2, 85),
        ([], signal.SIGINT, 130),
    ],
    ids=["SIGTERM", "SIGUSR2", "SIGINT"],
)
def test_a_signal_saves_a_run_that_has_a_process_of_its_own(words, tmp_path, more, number, status):
    process = started(*words("train.steps=1000", *more))
    reached(process, tmp_path / "run", 1)
    process.send_signal(number)
    assert ended(process)[0] == status
    assert complete(tmp_path / "run" / "checkpoints")


def test_a_signal_during_the_imports_asks_to_be_started_again(words):
    process = started(*words())
    status = Path(f"/proc/{process.pid}/status")
    while not caught(status, signal.SIGTERM):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    code, printed = ended(process)
    assert code == 85 and "SIGTERM before the first step: nothing to save" in printed


def caught(status: Path, number: int) -> bool:
    """True if the process of this file in /proc has a handler for the signal."""
    (mask,) = re.findall(r"SigCgt:\s*(\w+)", status.read_text())
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.faults
def test_a_signal_after_the_last_step_leaves_a_complete_run(words, tmp_path):
    process = started(*words("train.steps=1"))
    reached(process, tmp_path / "run", 1)
    process.send_signal(signal.SIGTERM)
    code, printed = ended(process)
    assert code == 0 and "export: " in printed, printed[-3000:]
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.parametrize("held_out", [False, True])
def test_a_signal_in_the_last_step_asks_for_what_is_left(words, questions, tmp_path, held_out):
    config = composed(*words("train.steps=1", *[f"data.eval={questions}", "eval.rates=[0]"] * held_out))
    run = build_run(config)
    assert run is not None
    hook = run.task.register_forward_pre_hook(
        lambda module, _: os.kill(os.getpid(), signal.SIGTERM) if module.training else None
    )
    status = fit(run)
    hook.remove()
    assert status == (85 if held_out else 0)
    assert complete(tmp_path / "run" / "checkpoints")


@pytest.mark.faults
def test_a_signal_before_the_first_step_asks_to_be_started_again(words, tmp_path):
    process = started(*words())
    while not (tmp_path / "run" / "config.yaml").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    code, printed = ended(process)
    assert code == 85 and "nothing to save" in printed
