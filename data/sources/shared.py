"""Result files that are built once and shared by ranks, worker processes, runs and machines.

The name of a result is a hash of everything that it depends on, so a result never changes. A process that needs a
missing result takes its lock, builds it and renames it into place. The system releases the lock of a killed process, so
it blocks no other, and no process waits in a collective.
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

from data.progress import progress_bar
from data.workers import START

POLL, REPORT_INTERVAL = 0.1, 30.0  # seconds
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # errors raised by file systems without locks


class Task(Protocol):
    """One result: its path and how to build it."""

    @property
    def path(self) -> Path: ...

    def make(self, path: Path) -> None:
        """Write the result to `path`. Raises ValueError if the data are invalid."""


def complete(
    tasks: Sequence[Task],
    what: str,
    *,
    workers: int = 0,
    progress: bool = True,
    on_result: Callable[[], None] = lambda: None,
) -> None:
    """Return when every result exists, built by `workers` processes or by other programs.

    `on_result` is called in this process for every result that is complete. Raises the ValueError of `make`.
    """
    missing = [task for task in tasks if not task.path.exists()]
    for folder in {task.path.parent for task in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    if not missing:
        return
    with progress_bar(total=len(missing), desc=what, unit="part", disable=not progress) as bar:
        if not workers:
            for _ in _completed(missing):
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
    """Yield the number of new results whenever some appear. Raises an error if a worker process fails."""
    missing, last_change = list(tasks), time.monotonic()
    while missing:
        begin = time.monotonic()
        if not failures.empty():
            raise ValueError(failures.get())
        if dead := [process for process in processes if process.exitcode]:
            raise RuntimeError(f"{what}: index worker (pid {dead[0].pid}) {_ended(dead[0].exitcode)}")
        still = [task for task in missing if not task.path.exists()]
        if len(still) < len(missing):
            last_change = begin
            yield len(missing) - len(still)
        elif begin - last_change > REPORT_INTERVAL:
            last_change = begin
            print(f"{what}: waiting for {len(missing)} parts, the first is {missing[0].path}", flush=True)
        missing = still
        time.sleep(max(POLL, 5 * (time.monotonic() - begin)))  # polls take at most a sixth of the time of a slow disk


def _ended(code: int) -> str:
    """How a process with this exit code ended, in the wording of torch's DataLoader."""
    if code < 0:
        return f"is killed by signal: {signal.strsignal(-code)}. "
    return f"exited unexpectedly with exit code {code}. "


def _work(tasks: Sequence[Task], parent: int, failures: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent terminates this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        for _ in _completed(tasks):
            if os.getppid() != parent:
                return
    except ValueError as error:
        failures.put(str(error))


def _completed(tasks: Sequence[Task]) -> Iterator[Task]:
    """Build the results that no other process builds, and yield every task once its result exists."""
    begin = os.getpid() * 7919 % len(tasks)  # different starting points, so that processes rarely compete
    left = [*tasks[begin:], *tasks[:begin]]
    while left:
        still = []
        for task in left:
            if task.path.exists() or _build_if_unlocked(task):
                yield task
            else:
                still.append(task)
        if len(still) == len(left):
            time.sleep(POLL)
        left = still


def _build_if_unlocked(task: Task) -> bool:
    """Build the result unless another process is building it; returns True if it exists then."""
    # The library's fallback to marker files would block forever if the holder were killed on another machine.
    lock = FileLock(f"{task.path}.lock", blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise  # without locks, two processes may build the same result; the rename is atomic
    try:
        if not task.path.exists():
            _make(task)
        Path(lock.lock_file).unlink(missing_ok=True)  # while the lock is held, so that a waiting process notices
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
