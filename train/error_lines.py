"""One-line messages for failures of the machine: the likely cause and what to change."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from train import cli

STATUS = 1  # exit status: the command line was valid
SMALLER = "lower train.batch_size or train.token_budget, data.max_frames or data.max_pixels"
WORKER = r"(?:DataLoader|index) worker \(pid(?:\(s\))? (?P<what>[\d, ]+)\) "
# (pattern in the message of an error, one-line explanation); the first match is used.
FAILURES = (
    (
        WORKER + r"is killed by signal: Killed",  # SIGKILL is the kernel's when memory is full
        "data worker (pid {what}) was killed, most likely because the machine's memory was full: "
        "lower data.workers, data.max_frames or data.max_pixels",
    ),
    (
        WORKER + r"is killed by signal: Bus error",
        "data worker (pid {what}) was ended by a bus error, most likely because shared memory was full: "
        "enlarge /dev/shm or lower data.workers",
    ),
    (
        WORKER + r"is killed by signal: (?P<how>[^.]+)",
        "data worker (pid {what}) was ended by a signal ({how}): start again with data.workers=0 to see where",
    ),
    (
        WORKER + r"exited unexpectedly with (?P<how>exit code \d+)",
        "data worker (pid {what}) ended with {how}: the first error above is the cause",
    ),
    (
        WORKER + r"exited unexpectedly",
        "data worker (pid {what}) ended without a status: start again with data.workers=0 to see where",
    ),
    (r"CUDA out of memory\. (?P<what>.*?)\. ", f"the GPU's memory is full ({{what}}): {SMALLER}"),
    (r"DefaultCPUAllocator: (?P<what>.*)", f"the machine's memory is full ({{what}}): {SMALLER}"),
    (
        r"(?P<what>Connection (?:closed|reset) by (?:remote )?peer|NCCL[^.\n]*|Timed out waiting)",
        "another rank has died or does not respond ({what}): the first error above is the cause",
    ),
)


def explained(error: BaseException) -> str | None:
    """A one-line explanation of a failure of the machine; None for any other error."""
    text = f"{error} {error.__cause__ or ''}"  # the cause says how a worker of a DataLoader ended
    for pattern, meaning in FAILURES:
        if match := re.search(pattern, text):
            return meaning.format(**{name: value.strip(" .") for name, value in match.groupdict().items()})
    return "the machine's memory is full: " + SMALLER if isinstance(error, MemoryError) else None


@contextmanager
def one_line_failures() -> Iterator[None]:
    """Report a failure of the machine in one line and end the process; EVS_TRACE=1 shows the traceback."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        line = explained(error)
        if line is None or os.environ.get("EVS_TRACE") == "1":
            raise
        cli.fail(f"rank {os.environ.get('RANK', 0)}: {line}", STATUS)
