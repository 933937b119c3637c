"""Results that are made once by whoever gets there first: ranks, their worker processes, other runs, other machines.

A result is a file whose name says all that it follows from, so it never changes. Who misses one claims it (a file that
is created exclusively, and touched while its owner lives), makes it, and renames it into place. Nobody waits in a
collective, and work that a dead process has claimed is taken over.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, Protocol

from data.loader import START
from data.progress import progress_bar

STALE = 60.0  # seconds after which a claim that nobody touched is anyone's
TOUCH, POLL, SPEAK = 5.0, 0.1, 30.0


class Task(Protocol):
    """One result: where it belongs, and how it is made."""

    @property
    def path(self) -> Path: ...

    def make(self, path: Path) -> None:
        """Write the result to `path`. ValueError where the data are at fault."""


def complete(tasks: Sequence[Task], what: str, *, workers: int = 0, progress: bool = True) -> None:
    """Returns when every result is there, made here in `workers` processes or by others. ValueError as `make`."""
    missing = [task for task in tasks if not task.path.exists()]
    for folder in {task.path.parent for task in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    if not missing:
        return
    with progress_bar(total=len(missing), desc=what, unit="part", disable=not progress) as bar:
        if not workers:
            for _ in _made(missing):
                bar.update()
            return
        context: Any = multiprocessing.get_context(START)
        failures = context.SimpleQueue()
        arguments = (missing, os.getpid(), failures)
        processes = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(workers)]
        for process in processes:
            process.start()
        try:
            for number in _watched(missing, processes, failures, what):
                bar.update(number - bar.n)
        finally:
            for process in processes:
                process.terminate()
                process.join()


def _watched(tasks: Sequence[Task], processes: Sequence[Any], failures: Any, what: str) -> Iterator[int]:
    """How many results are there, as they come. Raises what made a worker process fail."""
    left, moved = list(tasks), time.monotonic()
    while left:
        begin = time.monotonic()
        if not failures.empty():
            raise ValueError(failures.get())
        if dead := [process for process in processes if process.exitcode]:
            raise RuntimeError(f"{what}: index worker (pid {dead[0].pid}) ended with status {dead[0].exitcode}")
        still = [task for task in left if not task.path.exists()]
        if len(still) < len(left):
            moved = begin
        elif begin - moved > SPEAK:
            moved = begin
            print(f"{what}: {len(left)} parts are missing, the first {_held_by(left[0])}", flush=True)
        left = still
        yield len(tasks) - len(left)
        time.sleep(max(POLL, 5 * (time.monotonic() - begin)))  # a slow file system is not to be kept busy with this


def _held_by(task: Task) -> str:
    try:
        return f"is being made by {_claim(task).read_text()}"
    except OSError:
        return "is next"


def _work(tasks: Sequence[Task], parent: int, failures: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        for _ in _made(tasks):
            if os.getppid() != parent:
                return
    except ValueError as error:
        failures.put(str(error))


def _made(tasks: Sequence[Task]) -> Iterator[Task]:
    """Makes what nobody else does, and gives every task once its result is there."""
    begin = os.getpid() * 7919 % len(tasks)  # so that processes seldom meet
    left = [*tasks[begin:], *tasks[:begin]]
    while left:
        still = []
        for task in left:
            if task.path.exists() or _made_here(task):
                yield task
            else:
                still.append(task)
        if len(still) == len(left):
            time.sleep(POLL)
        left = still


def _made_here(task: Task) -> bool:
    """Whether it could be claimed, and so was made."""
    with _claimed(task) as mine:
        if mine and not task.path.exists():
            partial = task.path.with_name(f"{task.path.name}.{socket.gethostname()}.{os.getpid()}.partial")
            try:
                task.make(partial)
                partial.replace(task.path)
            finally:
                partial.unlink(missing_ok=True)
    return mine


@contextmanager
def _claimed(task: Task) -> Iterator[bool]:
    """Whether the task is this process's until the end of the block."""
    claim, over = _claim(task), Event()
    if not _create(claim):
        yield False
        return
    Thread(target=_keep, args=(claim, over), daemon=True).start()
    try:
        yield True
    finally:
        over.set()
        claim.unlink(missing_ok=True)


def _claim(task: Task) -> Path:
    return task.path.with_name(task.path.name + ".claim")


def _create(claim: Path) -> bool:
    try:
        if time.time() - claim.stat().st_mtime > STALE:
            claim.unlink(missing_ok=True)
    except OSError:
        pass
    try:
        with claim.open("x") as file:
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
    except FileExistsError:
        return False
    return True


def _keep(claim: Path, over: Event) -> None:
    while not over.wait(TOUCH):
        try:
            os.utime(claim)
        except OSError:
            return
