"""Results that are made once by whoever gets there first: ranks, their worker processes, other runs, other machines.

A result is a file whose name says all that it follows from, so it never changes. A process that misses one locks it,
makes it, and renames it into place. The system drops a lock with its holder, so a killed process blocks nobody, and no
process waits in a collective.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from data.loader import START
from data.progress import progress_bar

POLL, SPEAK = 0.1, 30.0  # seconds
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # errors of file systems without locks


class Task(Protocol):
    """One result: where it belongs, and how it is made."""

    @property
    def path(self) -> Path: ...

    def make(self, path: Path) -> None:
        """Write the result to `path`. ValueError where the data are at fault."""


def complete(
    tasks: Sequence[Task],
    what: str,
    *,
    workers: int = 0,
    progress: bool = True,
    on_result: Callable[[], None] = lambda: None,
) -> None:
    """Return when every result exists, made here in `workers` processes or by other programs. ValueError as `make`.

    `on_result` is called in this process for every result that appears.
    """
    missing = [task for task in tasks if not task.path.exists()]
    for folder in {task.path.parent for task in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    if not missing:
        return
    with progress_bar(total=len(missing), desc=what, unit="part", disable=not progress) as bar:
        if not workers:
            for _ in _made(missing):
                bar.update()
                on_result()
            return
        context: Any = multiprocessing.get_context(START)
        failures = context.SimpleQueue()
        arguments = (missing, os.getpid(), failures)
        processes = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(workers)]
        for process in processes:
            process.start()
        try:
            for number in _watched(missing, processes, failures, what):
                bar.update(number)
                on_result()
        finally:
            for process in processes:
                process.terminate()
                process.join()


def _watched(tasks: Sequence[Task], processes: Sequence[Any], failures: Any, what: str) -> Iterator[int]:
    """Numbers of further results, as they appear. Raises what made a worker process fail."""
    left, moved = list(tasks), time.monotonic()
    while left:
        begin = time.monotonic()
        if not failures.empty():
            raise ValueError(failures.get())
        if dead := [process for process in processes if process.exitcode]:
            raise RuntimeError(f"{what}: index worker (pid {dead[0].pid}) {_ended(dead[0].exitcode)}")
        still = [task for task in left if not task.path.exists()]
        if len(still) < len(left):
            moved = begin
            yield len(left) - len(still)
        elif begin - moved > SPEAK:
            moved = begin
            print(f"{what}: {len(left)} parts are still missing, the first is {left[0].path}", flush=True)
        left = still
        time.sleep(max(POLL, 5 * (time.monotonic() - begin)))  # a slow file system is not to be kept busy with this


def _ended(code: int) -> str:
    """How a process of this exit code ended, in the words of torch's DataLoader."""
    if code < 0:
        return f"is killed by signal: {signal.strsignal(-code)}. "
    return f"exited unexpectedly with exit code {code}. "


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
    """True if no other process is making the task's result, which then exists."""
    # The library's fallback to marker files would block for ever if its holder were killed on another machine.
    lock = FileLock(f"{task.path}.lock", blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise  # without locks two processes may do the same work; either result is renamed into place whole
    try:
        if not task.path.exists():
            _make(task)
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held, so that a waiting process notices
    finally:
        lock.release()
    return True


def _make(task: Task) -> None:
    partial = task.path.with_name(f"{task.path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    try:
        task.make(partial)
        partial.replace(task.path)
    finally:
        partial.unlink(missing_ok=True)
