"""Timing several functions in turn in one process."""

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
    """Seconds of every round. Functions that are timed together have the same rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def ratio_to(self, slower: Timed) -> tuple[float, float, float]:
        """How many times longer `slower` takes: median, smallest and largest ratio over the rounds."""
        ratios = [b / a for a, b in zip(self.seconds, slower.seconds)]
        return statistics.median(ratios), min(ratios), max(ratios)


def alternate(functions: Mapping[K, Callable[[], Any]], rounds: int) -> dict[K, Timed]:
    """Time every function once per round, so that other load of the machine affects all of them alike. Each runs once
    before the first round."""
    for function in functions.values():
        function()
    seconds: dict[K, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(timed(function))
    return {name: Timed(tuple(of_rounds)) for name, of_rounds in seconds.items()}


def timed(function: Callable[[], Any]) -> float:
    """Seconds until the function has returned and the device is idle."""
    synchronize()
    begin = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - begin


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def release() -> None:
    """Free the GPU memory of deleted models. Rebound forwards make reference cycles, so this needs the garbage
    collector."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table for a terminal, with right-aligned columns."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in cells)
