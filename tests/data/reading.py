"""Rows of files, datasets and shards as a run reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data.formats.rows import Format
from data.sources.collection import Collection, ReadOptions, collect
from data.sources.spec import parse_sources


def collected(given: Any, format: str = "auto", columns: Any = None, **reading: Any) -> Collection:
    how = Format(format) if columns is None else Format(format, columns)
    return collect(parse_sources("data.train", given), ReadOptions(how, **reading, progress=False))


def read(given: Any, **how: Any) -> Any:
    """Its samples."""
    return collected(given, **how).samples


@dataclass(frozen=True)
class InOrder:
    """A plan whose every step holds these micro-batches."""

    batches: tuple[tuple[int, ...], ...]

    def micro_batches(self, step: int) -> tuple[tuple[int, ...], ...]:
        return self.batches
