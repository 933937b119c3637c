"""Ends a process that makes no progress, after every rank has reported what it was doing.

run_dir/stall/rank_0.txt    phase, step and sample ids, then the stacks of all threads

Imports nothing slow: `train/run.py` starts the watchdog before its other imports.
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
START_S = 30  # lower bound of the limit before the first step, whose duration varies most between machines


@dataclass(frozen=True)
class Activity:
    """What a rank is doing, since `begin` on the monotonic clock."""

    phase: str = "imports"
    step: int = 0  # counted from 1; 0 before the first step
    samples: Sequence[str] = ()
    begin: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        samples = f", samples {', '.join(self.samples)}" if self.samples else ""
        return f"{self.phase}, step {self.step}{samples}" if self.step else self.phase


@dataclass
class Watchdog:
    """A thread that ends the process after `limit_s` seconds without progress, or after another rank reported a stall.

    Progress is a call of `enter` or `progress`, and before the first step an imported module.
    """

    limit_s: float = 60 * TIMEOUT_MINUTES
    folder: Path | None = None  # of the reports; None writes to stderr, until the run's folder is known
    _activity: Activity = field(default_factory=Activity)
    _earlier: dict[str, float] = field(default_factory=dict)  # reports that an earlier run left in the folder
    _stop: threading.Event | None = None  # ends the thread; None if it is not running

    def enter(self, phase: str, step: int | None = None, samples: Sequence[str] = ()) -> None:
        """Note that this rank begins `phase` of `step`; None keeps the current step."""
        self._activity = Activity(phase, self._activity.step if step is None else step, samples)

    def progress(self) -> None:
        """Note that the current phase has made progress."""
        self._activity = replace(self._activity, begin=time.monotonic())

    def start(self, words: Sequence[str] = ()) -> None:
        """Start watching this process, with the limit that the command line `words` set, if any."""
        self.limit_s = 60 * next(filter(None, map(_minutes, words)), self.limit_s / 60)
        if self._stop is None:
            self._stop = threading.Event()
            threading.Thread(target=self._watch, args=(self._stop,), daemon=True, name="watchdog").start()

    def stop(self) -> None:
        """Stop watching this process."""
        if self._stop is not None:
            self._stop.set()
        self._stop = None

    @contextmanager
    def watching(self, folder: Path, limit_s: float) -> Iterator[None]:
        """Inside, a lack of progress for `limit_s` ends the process, with reports in `folder`."""
        self.folder, self.limit_s = folder, limit_s
        self._earlier = self._reports()
        self.enter("start", 0)
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
            limit = self.limit_s if self._activity.step else max(self.limit_s, START_S)
            if others or time.monotonic() - self._activity.begin > limit:
                self._end(first=not others)

    def _end(self, first: bool) -> NoReturn:
        """Write this rank's report, wait a little for the others', and end the process and its children."""
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        minutes = (time.monotonic() - self._activity.begin) / 60
        try:
            self._write(rank, f"rank {rank} of {world}: {self._activity}, for {minutes:.1f} minutes")
            if first:
                stacks = f"all ranks' stacks: {self.folder}" if self.folder else "its stack is above"
                limit = "raise engine.timeout_minutes if it was not stuck"
                print_error(
                    f"no progress for {minutes:.1f} minutes: rank {rank} in {self._activity}; {stacks}; {limit}"
                )
            end = time.monotonic() + min(GRACE_S, self.limit_s)
            while self.folder and len(self._new_reports()) < world and time.monotonic() < end:
                time.sleep(0.2)
        finally:  # even if no report can be written
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
        """Modification times of the reports in the folder, by file name."""
        reports = self.folder.glob("rank_*.txt") if self.folder else ()
        return {path.name: path.stat().st_mtime for path in reports}


def _minutes(word: str) -> float | None:
    """The value of a word `engine.timeout_minutes=VALUE`; None for other words and for invalid values."""
    match = re.fullmatch(r"\+*engine\.timeout_minutes=([\d.e+-]+)", word)
    try:
        minutes = float(match[1]) if match else 0.0
    except ValueError:
        return None
    return minutes if 0 < minutes < math.inf else None


def _kill_children() -> None:
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.kill()


WATCHDOG = Watchdog()  # this process's
