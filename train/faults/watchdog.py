"""A run without progress ends, and every rank leaves where it was.

run_dir/stall/rank_0.txt    phase, step and sample ids, then the stacks of all threads
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

STALLED = 1  # exit status
GRACE_S = 30  # in which the other ranks write theirs


@dataclass(frozen=True)
class Place:
    """Where a rank is, since `begin` on the monotonic clock."""

    phase: str = "start"
    step: int = 0  # from 1
    samples: Sequence[str] = ()
    begin: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        samples = f", samples {', '.join(self.samples)}" if self.samples else ""
        return f"{self.phase}, step {self.step}{samples}"


@dataclass
class Watchdog:
    """`at(...)` whenever something begins; a thread ends the process `limit_s` after the last one, or when another
    rank's has."""

    folder: Path
    rank: int
    world: int
    limit_s: float
    _place: Place = field(default_factory=Place)

    def at(self, phase: str, step: int | None = None, samples: Sequence[str] = ()) -> None:
        """Progress: this rank begins `phase` (of the same step as before without one)."""
        self._place = Place(phase, self._place.step if step is None else step, samples)

    def progress(self) -> None:
        """It is still at the same place, and not stuck."""
        self._place = replace(self._place, begin=time.monotonic())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, a lack of progress ends the process."""
        self.at("start")
        over, before = threading.Event(), self._reports()
        watch = threading.Thread(target=self._watch, args=(over, before), daemon=True, name="watchdog")
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join()

    def _watch(self, over: threading.Event, before: dict[str, float]) -> None:
        while not over.wait(min(5.0, self.limit_s / 20)):
            others = self._reports().items() - before.items()
            if others or time.monotonic() - self._place.begin > self.limit_s:
                self._end(first=not others, before=before)

    def _end(self, first: bool, before: dict[str, float]) -> NoReturn:
        """Write this rank's report, wait a little for the others', and end the process and its workers."""
        path = self.folder / f"rank_{self.rank}.txt"
        minutes = (time.monotonic() - self._place.begin) / 60
        try:
            write(path, f"rank {self.rank} of {self.world}: {self._place}, for {minutes:.1f} minutes")
            if first:
                where = f"rank {self.rank} in {self._place}; all ranks' stacks: {self.folder}"
                print(
                    f"error: no progress for {minutes:.1f} minutes (engine.timeout_minutes): {where}", file=sys.stderr
                )
            end = time.monotonic() + min(GRACE_S, self.limit_s)
            while len(self._reports().items() - before.items()) < self.world and time.monotonic() < end:
                time.sleep(0.2)
        finally:  # even where nothing can be written
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(STALLED)

    def _reports(self) -> dict[str, float]:
        """The reports in the folder, an earlier run's among them, and when they were written."""
        return {path.name: path.stat().st_mtime for path in self.folder.glob("rank_*.txt")}


def write(path: Path, headline: str) -> None:
    """The headline and the stacks of this process's threads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        print(headline, end="\n\n", file=file, flush=True)
        faulthandler.dump_traceback(file, all_threads=True)
    partial.replace(path)
