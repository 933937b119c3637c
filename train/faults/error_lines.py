"""What a machine does to a run, in one line that names the likely cause and what to change."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from train import cli

STATUS = 1  # exit status: the command was right
SMALLER = "lower train.batch_size or train.token_budget, data.max_frames or data.max_pixels"
# What the message of an error holds, and what it means; the first that matches counts.
KNOWN = (
    (
        r"(?:DataLoader|index) worker \(pid(?:\(s\))? (?P<what>[\d, ]+)\)",
        "data worker (pid {what}) was killed, most likely because the machine's memory was full: "
        "lower data.workers, data.max_frames or data.max_pixels",
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
    for pattern, meaning in KNOWN:
        if found := re.search(pattern, str(error)):
            return meaning.format(what=found["what"].strip(" ."))
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
