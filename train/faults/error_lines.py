"""What a machine does to a run, in one line that names the likely cause and what to change."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from train import cli

STATUS = 1  # exit status: the command was right
SMALLER = "lower train.batch_size or train.token_budget, data.max_frames or data.max_pixels"
WORKER = r"(?:DataLoader|index) worker \(pid(?:\(s\))? (?P<what>[\d, ]+)\) "
# What the message of an error holds, and what it means; the first that matches counts.
KNOWN = (
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
        "data worker (pid {what}) ended and left no status: start again with data.workers=0 to see where",
    ),
    (r"CUDA out of memory\. (?P<what>.*?)\. ", f"the GPU's memory is full ({{what}}): {SMALLER}"),
    (r"DefaultCPUAllocator: (?P<what>.*)", f"the machine's memory is full ({{what}}): {SMALLER}"),
    (
        r"(?P<what>Connection (?:closed|reset) by (?:remote )?peer|NCCL[^.\n]*|Timed out waiting)",
        "another rank has died or does not answer ({what}): the first error above is the cause",
    ),
)


def explained(error: BaseException) -> str | None:
    """The line for what is known to happen to runs; None for what is not, and for what is our own fault."""
    said = f"{error} {error.__cause__ or ''}"  # how a DataLoader's worker ended stands in the cause
    for pattern, meaning in KNOWN:
        if found := re.search(pattern, said):
            return meaning.format(**{name: text.strip(" .") for name, text in found.groupdict().items()})
    return "the machine's memory is full: " + SMALLER if isinstance(error, MemoryError) else None


@contextmanager
def one_line_failures() -> Iterator[None]:
    """A known failure of the machine ends the process with one line that names the rank; EVS_TRACE=1 shows where."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        line = explained(error)
        if line is None or os.environ.get("EVS_TRACE") == "1":
            raise
        cli.fail(f"rank {os.environ.get('RANK', 0)}: {line}", STATUS)
