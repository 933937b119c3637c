"""Commands that run in their own process with a time limit, and the reason why one failed."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

PR_SET_PDEATHSIG = 1
ERROR = re.compile(r"^(?:\[rank\d\]: )?(?:[\w.]*(?:Error|Exception)|error): *(.+)")
LIBC = ctypes.CDLL(None)


def run_limited(
    words: Sequence[str], log: Path, seconds: float | None, folder: Path, environment: Mapping[str, str] | None = None
) -> int | None:
    """Run a command in `folder`, with its output in `log`. Its exit status, or None if it was killed after `seconds`.

    The processes of its session end with it, and it ends with this process, even on SIGKILL.
    """
    with background(words, log, folder, environment) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


@contextmanager
def background(
    words: Sequence[str], log: Path, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs next to this one. At the end, its session is killed."""
    with log.open("w") as file:
        process = subprocess.Popen(
            list(words),
            cwd=folder,
            env=os.environ | dict(environment or {}),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            yield process
        finally:
            _end(process)


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, however that ends. Not inherited by child processes."""
    if hasattr(LIBC, "prctl"):  # Linux
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def reason(log: str) -> str:
    """The last error of a log, or its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or lines or ["it printed nothing"])[-1][:300]
