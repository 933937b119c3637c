"""A data file -> its samples, read from disk when asked for: a large file costs memory for its index only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from data.formats.columns import Columns
from data.types import RowError, Sample

FORMAT_OF_KEY = {"conversations": "llava", "messages": "openai"}  # how "auto" tells


def load(path: str, *, format: str = "auto", media_root: str | None = None, columns: Columns | None = None) -> Samples:
    """The samples of a .json, .jsonl or .parquet file. Every row is checked now: RowError names the first bad one.

    `format` is a module of data.formats ("llava", "openai"), or "auto" to tell by each row's keys; `columns` gives the
    names of columns that are called otherwise. Relative media paths start at `media_root`, or at the file's folder.
    ValueError if the file or the format does not exist.
    """
    if format != "auto":
        _converter(format)
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{path}: no such data file; mend data.train or data.eval")
    root = Path(media_root) if media_root is not None else file.parent
    samples = Samples(_rows(file), format, root, columns or Columns())
    for _ in samples:
        pass
    if not len(samples):
        raise ValueError(f"{path}: holds no rows; give a file with at least one conversation")
    return samples


@dataclass(frozen=True)
class JsonRows:
    """Rows of a JSON or JSONL file by their place in it; holds no handle, so that worker processes may share it."""

    path: Path
    spans_R2: np.ndarray  # int64, bytes [begin, end) of each row
    names: np.ndarray  # line or index of each row, as the user counts them

    def __len__(self) -> int:
        return len(self.spans_R2)

    def __getitem__(self, place: int) -> dict[str, Any]:
        begin, end = self.spans_R2[place].tolist()
        with self.path.open("rb") as file:
            file.seek(begin)
            return _parsed(file.read(end - begin), self.where(place))

    def where(self, place: int) -> str:
        return f"{self.path}:{self.names[place]}" if self.path.suffix == ".jsonl" else f"{self.path}[{place}]"


@dataclass(frozen=True)
class ParquetRows:
    """Rows of a Parquet file, mapped into memory by `datasets`."""

    path: Path
    table: Any  # datasets.Dataset

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.table[place]

    def where(self, place: int) -> str:
        return f"{self.path}[{place}]"


@dataclass(frozen=True)
class Samples(Sequence[Sample]):
    """A file's rows as samples, made when asked for."""

    rows: JsonRows | ParquetRows
    format: str
    media_root: Path
    columns: Columns = field(default_factory=Columns)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]  # negative places, IndexError
        row, where = self.rows[place], self.rows.where(place)
        if self.columns.named:
            row = self.columns.rename(row, where)
        name = self.format if self.format != "auto" else _format_of(row, where)
        return _converter(name)(row, self.media_root, where)


@cache
def _converter(name: str) -> Callable[[Mapping[str, Any], Path, str], Sample]:
    """`sample` of the module data.formats.<name>. ValueError if there is none."""
    found = find_spec(f"data.formats.{name}")
    converter = getattr(import_module(f"data.formats.{name}"), "sample", None) if found else None
    if converter is None:
        raise ValueError(f"data format {name!r} is unknown; use auto, {', '.join(FORMAT_OF_KEY.values())}")
    return converter


def _format_of(row: Mapping[str, Any], where: str) -> str:
    for key, name in FORMAT_OF_KEY.items():
        if row.get(key) is not None:
            return name
    raise RowError(f"{where}: has keys {sorted(row)} but neither {' nor '.join(FORMAT_OF_KEY)}; convert the row")


def _rows(file: Path) -> JsonRows | ParquetRows:
    match file.suffix:
        case ".jsonl":
            spans = list(_lines(file))
        case ".json":
            spans = list(_elements(file))
        case ".parquet":
            from datasets import Dataset  # slow to import, and needed here only

            return ParquetRows(file, Dataset.from_parquet(str(file)))
        case suffix:
            raise ValueError(f"{file}: cannot read {suffix or 'a file without suffix'}; use .json, .jsonl or .parquet")
    table = np.array(spans, dtype=np.int64).reshape(-1, 3)
    return JsonRows(file, table[:, :2], table[:, 2])


def _lines(file: Path) -> Iterator[tuple[int, int, int]]:
    """(begin, end, line number) of each line that is not blank."""
    begin = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield begin, begin + len(line), number
            begin += len(line)


def _elements(file: Path) -> Iterator[tuple[int, int, int]]:
    """(begin, end, index) of each element of one JSON array, one element at a time in memory beside the text."""
    try:
        text = file.read_text(encoding="utf-8")
        decoder, place, byte, index = json.JSONDecoder(), _skip(text, 0, ""), 0, 0
        if text[place : place + 1] != "[":
            raise RowError(f"{file}: is no list of rows; write [row, row, ...] or use .jsonl")
        place = _skip(text, place + 1, "")
        seen = 0
        while text[place : place + 1] != "]":
            _, end = decoder.raw_decode(text, place)
            begin_byte = byte + len(text[seen:place].encode())
            byte, seen = begin_byte + len(text[place:end].encode()), end
            yield begin_byte, byte, index
            index, place = index + 1, _skip(text, end, ",")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RowError(f"{file}: is no valid JSON ({error}); mend it there") from None


def _skip(text: str, place: int, also: str) -> int:
    while place < len(text) and (text[place].isspace() or text[place] == also):
        place += 1
    return place


def _parsed(text: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RowError(f"{where}: is no valid JSON ({error}); mend it there") from None
    if not isinstance(row, dict):
        raise RowError(f"{where}: is {type(row).__name__}, not an object; write {{...}}")
    return row
