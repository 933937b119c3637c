"""Work shared through a folder: made once, taken over from the dead, failing in one line."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from threading import Timer

import pytest

from data.sources import shared
from data.sources.shared import complete
from train.error_lines import explained


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


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of the result `0`."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "0.lock"], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"held\n"
        yield process
        process.kill()


HOLDER = (
    "import sys, time; from filelock import FileLock; "
    "held = FileLock(sys.argv[1]); held.acquire(); print('held', flush=True); time.sleep(60)"
)


@pytest.mark.parametrize("hours", [-48, 48], ids=["yesterday", "tomorrow"])
def test_a_killed_holder_blocks_nobody_whatever_its_clock(tmp_path, holder, hours):
    holder.kill()
    holder.wait()
    os.utime(tmp_path / "0.lock", (time.time() + 3600 * hours,) * 2)
    complete([Note(tmp_path / "0")], "notes", progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "made"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_result_that_another_process_makes_is_waited_for_and_named(tmp_path, holder, workers, monkeypatch, capfd):
    monkeypatch.setattr(shared, "REPORT_INTERVAL", 0.3)
    appeared: list[int] = []
    Timer(2, holder.kill).start()
    tasks = [Note(tmp_path / name) for name in "01"]
    complete(tasks, "notes", workers=workers, progress=False, on_result=lambda: appeared.append(1))
    assert len(appeared) == 2 and sorted((tmp_path / "made").read_text().split()) == ["0", "1"]
    if workers:
        assert f"notes: waiting for 1 parts, the first is {tmp_path / '0'}" in capfd.readouterr().out


def test_processes_that_start_together_make_every_result_once(tmp_path):
    tasks = [Note(tmp_path / str(i)) for i in range(40)]
    processes = [get_context("fork").Process(target=complete, args=(tasks, "notes")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted((tmp_path / "made").read_text().split()) == sorted(map(str, range(40)))


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    complete([Note(tmp_path / "0")], "notes", progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "made"}


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_made_ends_all_in_one_line(tmp_path, workers):
    with pytest.raises(ValueError, match=r"^1 cannot be made$"):
        complete([Note(tmp_path / str(i), bad=i == 1) for i in range(4)], "notes", workers=workers, progress=False)


@dataclass(frozen=True)
class Last(Note):
    """Ends the process that makes it, as a machine out of memory does."""

    def make(self, path: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_all_with_a_line_that_names_it(tmp_path):
    with pytest.raises(RuntimeError, match=r"notes: index worker \(pid \d+\) is killed by signal: Killed") as error:
        complete([Last(tmp_path / str(i)) for i in range(2)], "notes", workers=1, progress=False)
    assert "was killed, most likely because the machine's memory was full" in str(explained(error.value))
