"""The interface of all row storages, and rows as a sequence of samples."""

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
    """The rows of one file or data set. Holds no handle and little memory, so that workers can share it."""

    @property
    def identity(self) -> str:
        """A string that changes whenever the rows may have changed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The row at an index. Raises RowError if it cannot be parsed."""

    def where(self, index: int) -> str:
        """Name of the row in messages: file and line, or similar."""

    def root(self, index: int) -> Root:
        """The folder or archive that the row's media names are relative to."""


@dataclass(frozen=True)
class Samples(Sequence[Sample]):
    """The rows of one file as samples, converted on access. Access raises RowError for a row that cannot be used."""

    rows: Rows
    format: Format
    cache: Path  # folder of the index of these rows
    source: str  # name of the file, independent of its version

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # supports negative indices, raises IndexError
        where = self.rows.where(index)
        with row_errors(where):
            sample = self.format.sample(self.rows[index], self.rows.root(index), where)
            check_text(sample, where)
            return sample


def check_text(sample: Sample, where: str) -> None:
    """Raise RowError for text that cannot be encoded as UTF-8, and for a path with a NUL character."""
    texts = [part for turn in sample.turns for part in turn.parts if isinstance(part, str)]
    paths = [ref.path for ref in sample.media]
    for text in (sample.id, sample.kind, *sample.answers, *texts, *paths):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            surrogate = text[error.start]
            raise RowError(
                f"{where}: contains the lone surrogate {surrogate!r}, which is not Unicode; correct it"
            ) from None
    if broken := next((path for path in paths if "\0" in path), None):
        raise RowError(f"{where}: the path {broken!r:.60} contains a NUL character; correct the path")


@dataclass(frozen=True)
class ConcatSamples(Sequence[Sample]):
    """The samples of several files, concatenated."""

    parts: tuple[Samples, ...]

    @cached_property
    def first_P(self) -> np.ndarray:
        """[parts + 1] index of each part's first sample."""
        return np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self.first_P[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        part = int(np.searchsorted(self.first_P, index, "right")) - 1
        return self.parts[part][index - int(self.first_P[part])]


@dataclass(frozen=True)
class Selection(Sequence[Sample]):
    """A subset of a sequence of samples."""

    samples: Sequence[Sample]
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        chosen = self.indices[index]
        return [self.samples[int(i)] for i in chosen] if isinstance(index, slice) else self.samples[int(chosen)]
