"""Timing of several things side by side in one process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

K = TypeVar("K", bound=Hashable)
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Timed:
    """Seconds of every round, the same rounds for all things timed together."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def ratio_to(self, other: Timed) -> tuple[float, float, float]:
        """How many times longer `other` takes: median, least and most over the rounds."""
        ratios = [b / a for a, b in zip(self.seconds, other.seconds)]
        return statistics.median(ratios), min(ratios), max(ratios)


def alternate(things: Mapping[K, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[K, Timed]:
    """Each thing once a round, in turn, so that what else the machine does falls on all of them alike."""
    for thing in list(things.values()) * warmup:
        thing()
    seconds: dict[K, list[float]] = {name: [] for name in things}
    for _ in range(rounds):
        for name, thing in things.items():
            seconds[name].append(timed(thing))
    return {name: Timed(tuple(each)) for name, each in seconds.items()}


def timed(thing: Callable[[], Any]) -> float:
    """Seconds, until the device is done."""
    synchronize()
    begin = time.perf_counter()
    thing()
    synchronize()
    return time.perf_counter() - begin


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def release() -> None:
    """Give a GPU back what models hold that nothing refers to any more: rebound forwards make circles of references."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns flush right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in cells)
