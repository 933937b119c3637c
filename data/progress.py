"""Progress of long loops: a bar in a terminal, a few plain lines in a log."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from tqdm import tqdm

SECONDS = 30.0  # between two log lines
LINE = "{desc}: {n_fmt}/{total_fmt} {unit}, {elapsed} elapsed, {remaining} left{postfix}"


class _Lines(tqdm):
    """Prints a line every `SECONDS` and one at the end."""

    disable: bool

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.printed, self.printed_n = time.monotonic(), None
        super().__init__(*args, **{**settings, "bar_format": LINE})

    def display(self, *_: Any, **__: Any) -> None:
        due = self.disable or time.monotonic() - self.printed >= SECONDS
        if due and self.n != self.printed_n:
            self.printed, self.printed_n = time.monotonic(), self.n
            print(self, file=self.fp, flush=True)

    def close(self) -> None:
        if not self.disable:
            self.disable = True
            with self.get_lock():
                self._instances.discard(self)
            self.display()


def progress_bar(*args: Any, **settings: Any) -> tqdm:
    """`tqdm` with the same arguments if stderr is a terminal; otherwise it prints lines instead of drawing a bar."""
    return (tqdm if sys.stderr.isatty() else _Lines)(*args, **settings)


def hide_library_bars() -> None:
    """Disable the progress bars of transformers, huggingface_hub and datasets unless stderr is a terminal."""
    if sys.stderr.isatty():
        return
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")  # read when they are imported
    if "transformers" in sys.modules:
        sys.modules["transformers"].utils.logging.disable_progress_bar()
