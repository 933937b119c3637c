"""What machines do to runs is one line."""

from __future__ import annotations

import multiprocessing

import pytest
import torch

from tests.runs import composed, rows
from train.build import build_run
from train.error_lines import explained, one_line_failures
from train.loop import fit


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "data worker (pid 7) was killed"),
        (RuntimeError("DataLoader worker (pid(s) 7, 9) exited unexpectedly"), "data worker (pid 7, 9) ended"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"),
            "the GPU's memory is full (Tried to allocate 20.00 GiB): lower train.batch_size",
        ),
        (RuntimeError("[pair.cc:534] Connection closed by peer [10.0.0.1]:1234"), "another rank has died"),
        (MemoryError(), "the machine's memory is full"),
    ],
)
def test_a_known_failure_is_explained(error, message):
    line = explained(error)
    assert line is not None and message in line and "\n" not in line


WORKER = "DataLoader worker (pid 7) "
HOSTILE = {
    WORKER + "is killed by signal: Segmentation fault. ": "was ended by a signal (Segmentation fault)",
    WORKER + "is killed by signal: Bus error. It is possible that": "shared memory",
    WORKER + "is killed by signal: Terminated. ": "was ended by a signal (Terminated)",
    WORKER + "exited unexpectedly with exit code 3. Details are lost due to": "ended with exit code 3",
    "measuring: index worker (pid 7) exited unexpectedly with exit code 1. ": "ended with exit code 1",
    "measuring: index worker (pid 7) is killed by signal: Segmentation fault. ": "(Segmentation fault)",
}


@pytest.mark.parametrize("said", HOSTILE)
def test_a_hostile_end_of_a_worker_is_named_and_not_blamed_on_full_memory(said):
    line = explained(RuntimeError(said))
    assert line is not None and "data worker (pid 7) " in line and HOSTILE[said] in line
    assert "machine's memory" not in line


def test_a_hostile_end_of_a_worker_is_found_in_the_cause():
    error = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    error.__cause__ = RuntimeError(WORKER + "is killed by signal: Killed. ")
    line = explained(error)
    assert line is not None and "the machine's memory was full" in line


def test_an_unknown_error_keeps_its_trace():
    assert explained(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


@pytest.mark.slow
def test_a_killed_data_worker_is_one_line(words, tmp_path, capsys):
    run = build_run(composed(*words("train.steps=500", "data.workers=1")))
    assert run is not None
    others, killed = set(multiprocessing.active_children()), set()

    def kill(*_: object) -> None:
        if not killed and len(rows(tmp_path / "run")) >= 2:
            (worker,) = set(multiprocessing.active_children()) - others
            worker.kill()
            killed.add(worker.pid)

    run.task.register_forward_pre_hook(kill)
    with pytest.raises(SystemExit) as end, one_line_failures():
        fit(run)
    text, (pid,) = capsys.readouterr().err, killed
    assert end.value.code == 1 and f"error: rank 0: data worker (pid {pid}) was killed" in text
    assert "Traceback" not in text and rows(tmp_path / "run")[-1]["step"] >= 2
