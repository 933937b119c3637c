"""JSON and JSONL files, read from disk row by row: in memory are only the places where rows begin and end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.formats.roots import Folder
from data.types import RowError

ESCAPE = "surrogateescape"  # for bytes that are not UTF-8, so that only the row that holds them is lost
DECODER = json.JSONDecoder(parse_int=str)  # finds where a value ends; long integers are not converted
NESTING = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*"', re.DOTALL)
BOM = "\ufeff"  # byte-order mark, as some editors write before the text


@dataclass(frozen=True)
class JsonFile:
    """Where the rows of a .json or .jsonl file lie, found once and kept at `path`."""

    file: Path
    path: Path
    folder: Folder
    identity: str

    def make(self, path: Path) -> None:
        spans = list(_lines(self.file) if self.file.suffix == ".jsonl" else _elements(self.file))
        with path.open("wb") as file:
            np.save(file, np.array(spans, dtype=np.int64).reshape(-1, 3))

    def rows(self) -> JsonRows:
        return JsonRows(self, np.load(self.path))


@dataclass(frozen=True)
class JsonRows:
    """Rows of a JSON or JSONL file by their place in it."""

    source: JsonFile
    spans_R3: np.ndarray  # int64, bytes [begin, end) of each row, and its line or index as the user counts them

    @property
    def identity(self) -> str:
        return self.source.identity

    def __len__(self) -> int:
        return len(self.spans_R3)

    def __getitem__(self, place: int) -> dict[str, Any]:
        begin, end, _ = self.spans_R3[place].tolist()
        with self.source.file.open("rb") as file:
            file.seek(begin)
            return parsed(file.read(end - begin), self.where(place))

    def where(self, place: int) -> str:
        file, number = self.source.file, self.spans_R3[place, 2]
        return f"{file}:{number}" if file.suffix == ".jsonl" else f"{file}[{number}]"

    def root(self, place: int) -> Folder:
        return self.source.folder


def parsed(text: bytes, where: str) -> dict[str, Any]:
    """A row's text as an object; a bare list of turns is its conversation. RowError if it is neither."""
    try:
        row = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RowError(f"{where}: invalid JSON ({error}); correct it there") from None
    if isinstance(row, list) and row and isinstance(row[0], dict) and {"role", "from"} & row[0].keys():
        return {"messages" if "role" in row[0] else "conversations": row}
    if not isinstance(row, dict):
        raise RowError(f"{where}: is {type(row).__name__}, not an object; write {{...}}")
    return row


def _lines(file: Path) -> Iterator[tuple[int, int, int]]:
    """(begin, end, line number) of each line that is not blank."""
    begin = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.isspace():
                yield begin, begin + len(line), number
            begin += len(line)


def _elements(file: Path) -> Iterator[tuple[int, int, int]]:
    """(begin, end, index) of each element of one JSON array, one element at a time in memory beside the text."""
    try:
        text = file.read_bytes().decode(errors=ESCAPE)  # read_text would change line ends, and so the bytes counted
        place, byte, index = _skip(text, 0, BOM), 0, 0
        if text[place : place + 1] != "[":
            raise ValueError(f"{file}: not a list of rows; write [row, row, ...] or use .jsonl")
        place = _skip(text, place + 1, "")
        seen = 0
        while text[place : place + 1] != "]":
            end = _end(text, place)
            begin_byte = byte + len(text[seen:place].encode(errors=ESCAPE))
            byte, seen = begin_byte + len(text[place:end].encode(errors=ESCAPE)), end
            yield begin_byte, byte, index
            index, place = index + 1, _skip(text, end, ",")
        if _skip(text, place + 1, "") < len(text):
            raise ValueError(f"{file}: holds text after the end of its list; write one list, or use .jsonl")
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: invalid JSON ({error}); correct it there") from None


def _end(text: str, place: int) -> int:
    """Where the element that begins at `place` ends. JSONDecodeError for one that does not."""
    try:
        return DECODER.raw_decode(text, place)[1]
    except RecursionError:  # nested too deep for the decoder, which only its own row is to suffer from
        depth = 0
        for token in NESTING.finditer(text, place):
            depth += (token[0] in "[{") - (token[0] in "]}")
            if not depth:
                return token.end()
        raise json.JSONDecodeError("an element does not end", text, place) from None


def _skip(text: str, place: int, also: str) -> int:
    while place < len(text) and (text[place].isspace() or text[place] == also):
        place += 1
    return place
