"""Rows behind one interface, whatever they lie in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data.formats.roots import Root
from data.formats.rows import Format
from data.sample_limits import row_errors
from data.types import RowError, Sample


class Rows(Protocol):
    """The rows of one file or data set. Holds no handle and little memory, so that worker processes may share it."""

    @property
    def identity(self) -> str:
        """Changes when the rows may have."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int) -> dict[str, Any]:
        """RowError if it is no row."""

    def where(self, place: int) -> str:
        """The row's name in messages."""

    def root(self, place: int) -> Root:
        """What the row's media are relative to."""


@dataclass(frozen=True)
class Samples(Sequence[Sample]):
    """A file's rows as samples, made when asked for. RowError for a row that cannot be used."""

    rows: Rows
    format: Format
    kept: Path  # folder of what is found out about them
    source: str  # the file's name, whatever its version

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]  # negative places, IndexError
        where = self.rows.where(place)
        with row_errors(where):
            sample = self.format.sample(self.rows[place], self.rows.root(place), where)
            check_text(sample, where)
            return sample


def check_text(sample: Sample, where: str) -> None:
    """RowError for text that cannot be written as UTF-8, and for a path that no file can have."""
    texts = [part for turn in sample.turns for part in turn.parts if isinstance(part, str)]
    paths = [ref.path for ref in sample.media]
    for text in (sample.id, sample.kind, *sample.answers, *texts, *paths):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            surrogate = text[error.start]
            raise RowError(
                f"{where}: holds the lone surrogate {surrogate!r}, which is not Unicode; correct it"
            ) from None
    if broken := next((path for path in paths if "\0" in path), None):
        raise RowError(f"{where}: the path {broken!r:.60} holds a NUL character; correct the path")


@dataclass(frozen=True)
class Joined(Sequence[Sample]):
    """Several files' samples, one after the other."""

    parts: tuple[Samples, ...]

    @cached_property
    def first_P(self) -> np.ndarray:
        """Place of each part's first sample; one entry more."""
        return np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self.first_P[-1])

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        part = int(np.searchsorted(self.first_P, place, "right")) - 1
        return self.parts[part][place - int(self.first_P[part])]


@dataclass(frozen=True)
class Selection(Sequence[Sample]):
    """Some of a sequence's samples."""

    samples: Sequence[Sample]
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: Any) -> Any:
        chosen = self.places[place]
        return [self.samples[int(i)] for i in chosen] if isinstance(place, slice) else self.samples[int(chosen)]
