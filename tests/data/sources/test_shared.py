"""Work shared through a folder: made once, taken over from the dead, failing in one line."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from data.sources import shared
from data.sources.shared import complete
from train.faults.error_lines import explained


@dataclass(frozen=True)
class Note:
    """Says who made it; a bad one cannot be made."""

    path: Path
    bad: bool = False

    def make(self, path: Path) -> None:
        if self.bad:
            raise ValueError(f"{self.path.name} cannot be made")
        time.sleep(0.01)
        with (self.path.parent / "made").open("a") as file:
            file.write(f"{self.path.name}\n")
        path.write_text(str(os.getpid()))


@pytest.mark.parametrize("workers", [0, 3])
def test_every_task_is_made_once(tmp_path, workers):
    tasks = [Note(tmp_path / "notes" / str(i)) for i in range(40)]
    complete(tasks, "notes", workers=workers, progress=False)
    complete(tasks, "notes", workers=workers, progress=False)
    names = (tmp_path / "notes" / "made").read_text().split()
    assert sorted(names) == sorted(map(str, range(40)))
    assert {path.name for path in (tmp_path / "notes").iterdir()} == {*names, "made"}


def test_a_claim_of_the_dead_is_taken_over(tmp_path, monkeypatch):
    note = Note(tmp_path / "0")
    claim = tmp_path / "0.claim"
    claim.write_text("process 1 on nowhere")
    os.utime(claim, (0, 0))
    complete([note], "notes", progress=False)
    assert note.path.exists() and not claim.exists()


def test_a_claim_of_the_living_is_waited_for_and_named(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(shared, "SPEAK", 0.3)
    monkeypatch.setattr(shared, "STALE", 1.0)
    (tmp_path / "0.claim").write_text("process 1 on nowhere")
    complete([Note(tmp_path / "0")], "notes", workers=1, progress=False)
    assert "notes: 1 parts are missing, the first is being made by process 1 on nowhere" in capfd.readouterr().out


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_made_ends_all_in_one_line(tmp_path, workers):
    with pytest.raises(ValueError, match=r"^1 cannot be made$"):
        complete([Note(tmp_path / str(i), bad=i == 1) for i in range(4)], "notes", workers=workers, progress=False)
    assert not list(tmp_path.glob("*.claim")) or workers


@dataclass(frozen=True)
class Last(Note):
    """Ends the process that makes it, as a machine out of memory does."""

    def make(self, path: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_all_with_a_line_that_names_it(tmp_path):
    with pytest.raises(RuntimeError, match=r"notes: index worker \(pid \d+\) ended") as error:
        complete([Last(tmp_path / str(i)) for i in range(2)], "notes", workers=1, progress=False)
    assert "was killed, most likely because the machine's memory was full" in str(explained(error.value))
