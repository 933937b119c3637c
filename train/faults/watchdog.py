"""A process without progress ends, and every rank reports where it was.

run_dir/stall/rank_0.txt    phase, step and sample ids, then the stacks of all threads

Imports nothing that takes time: `train/run.py` starts the watchdog before its other imports.
"""

from __future__ import annotations

import faulthandler
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from train.faults.printing import print_error

STALLED = 1  # exit status
GRACE_S = 30  # in which the other ranks write their reports
TIMEOUT_MINUTES = 30.0
START_S = 30  # the least limit before the first step, where machines differ most


@dataclass(frozen=True)
class Place:
    """Where a rank is, since `begin` on the monotonic clock."""

    phase: str = "imports"
    step: int = 0  # from 1
    samples: Sequence[str] = ()
    begin: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        samples = f", samples {', '.join(self.samples)}" if self.samples else ""
        return f"{self.phase}, step {self.step}{samples}" if self.step else self.phase


@dataclass
class Watchdog:
    """`at(...)` whenever something begins; a thread ends the process `limit_s` after the last one, or when another
    rank's has."""

    limit_s: float = 60 * TIMEOUT_MINUTES
    folder: Path | None = None  # of the reports; None: stderr, since the run's folder is not known yet
    _place: Place = field(default_factory=Place)
    _earlier: dict[str, float] = field(default_factory=dict)  # reports of another run in the folder
    _stop: threading.Event | None = None  # of the thread

    def at(self, phase: str, step: int | None = None, samples: Sequence[str] = ()) -> None:
        """Progress: this rank begins `phase` (of the same step as before without one)."""
        self._place = Place(phase, self._place.step if step is None else step, samples)

    def progress(self) -> None:
        """The rank is still at the same place, and not stuck."""
        self._place = replace(self._place, begin=time.monotonic())

    def start(self, words: Sequence[str] = ()) -> None:
        """Watch this process; the limit is the one that the command line's `words` ask for."""
        self.limit_s = 60 * next(filter(None, map(_minutes, words)), self.limit_s / 60)
        if self._stop is None:
            self._stop = threading.Event()
            threading.Thread(target=self._watch, args=(self._stop,), daemon=True, name="watchdog").start()

    def stop(self) -> None:
        """Watch no longer."""
        if self._stop is not None:
            self._stop.set()
        self._stop = None

    @contextmanager
    def watching(self, folder: Path, limit_s: float) -> Iterator[None]:
        """Inside, a lack of progress for `limit_s` ends the process, with reports in `folder`."""
        self.folder, self.limit_s = folder, limit_s
        self._earlier = self._reports()
        self.at("start", 0)
        self.start()
        try:
            yield
        finally:
            self.stop()

    def _watch(self, stop: threading.Event) -> None:
        modules = 0
        while not stop.wait(min(5.0, self.limit_s / 20)):
            if len(sys.modules) != modules:  # imports are progress
                modules = len(sys.modules)
                self.progress()
            others = self._new_reports()
            limit = self.limit_s if self._place.step else max(self.limit_s, START_S)
            if others or time.monotonic() - self._place.begin > limit:
                self._end(first=not others)

    def _end(self, first: bool) -> NoReturn:
        """Write this rank's report, wait a little for the others', and end the process and its children."""
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        minutes = (time.monotonic() - self._place.begin) / 60
        try:
            self._write(rank, f"rank {rank} of {world}: {self._place}, for {minutes:.1f} minutes")
            if first:
                stacks = f"all ranks' stacks: {self.folder}" if self.folder else "its stack is above"
                limit = "raise engine.timeout_minutes if it was not stuck"
                print_error(f"no progress for {minutes:.1f} minutes: rank {rank} in {self._place}; {stacks}; {limit}")
            end = time.monotonic() + min(GRACE_S, self.limit_s)
            while self.folder and len(self._new_reports()) < world and time.monotonic() < end:
                time.sleep(0.2)
        finally:  # even where nothing can be written
            _kill_children()
            os._exit(STALLED)

    def _write(self, rank: int, headline: str) -> None:
        """The headline and the stacks of this process's threads."""
        if self.folder is None:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"rank_{rank}.partial"
        with partial.open("w") as file:
            print(headline, end="\n\n", file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
        partial.replace(partial.with_suffix(".txt"))

    def _new_reports(self) -> set[tuple[str, float]]:
        return self._reports().items() - self._earlier.items()

    def _reports(self) -> dict[str, float]:
        """The reports in the folder, and when they were written."""
        found = self.folder.glob("rank_*.txt") if self.folder else ()
        return {path.name: path.stat().st_mtime for path in found}


def _minutes(word: str) -> float | None:
    """The value of `engine.timeout_minutes=`, if this is the word for it and can be read."""
    found = re.fullmatch(r"\+*engine\.timeout_minutes=([\d.e+-]+)", word)
    try:
        minutes = float(found[1]) if found else 0.0
    except ValueError:
        return None
    return minutes if 0 < minutes < math.inf else None


def _kill_children() -> None:
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.kill()


WATCHDOG = Watchdog()  # this process's
