"""JSON and JSONL files, read from disk row by row; only the byte offsets of rows are in memory."""

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

ESCAPE = "surrogateescape"  # invalid UTF-8 makes only its own row unusable
DECODER = json.JSONDecoder(parse_int=str)  # to find the end of a value; long integers are not converted
NESTING = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*"', re.DOTALL)
BOM = "\ufeff"  # byte-order mark that some editors write at the beginning


@dataclass(frozen=True)
class JsonFile:
    """The byte offsets of the rows of a .json or .jsonl file, computed once and stored at `path`."""

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
    """Rows of a JSON or JSONL file by index."""

    source: JsonFile
    spans_R3: np.ndarray  # int64: byte range [begin, end) of each row, and its line number or array index

    @property
    def identity(self) -> str:
        return self.source.identity

    def __len__(self) -> int:
        return len(self.spans_R3)

    def __getitem__(self, index: int) -> dict[str, Any]:
        begin, end, _ = self.spans_R3[index].tolist()
        with self.source.file.open("rb") as file:
            file.seek(begin)
            return parsed(file.read(end - begin), self.where(index))

    def where(self, index: int) -> str:
        file, number = self.source.file, self.spans_R3[index, 2]
        return f"{file}:{number}" if file.suffix == ".jsonl" else f"{file}[{number}]"

    def root(self, index: int) -> Folder:
        return self.source.folder


def parsed(text: bytes, where: str) -> dict[str, Any]:
    """Parse the text of a row; a bare list of turns is taken for its conversation.

    Raises RowError if the text is not a JSON object or list of turns.
    """
    try:
        row = json.loads(text, object_pairs_hook=_unique)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError among others
        raise RowError(f"{where}: invalid JSON ({error}); correct it there") from None
    if isinstance(row, list) and row and isinstance(row[0], dict) and {"role", "from"} & row[0].keys():
        return {"messages" if "role" in row[0] else "conversations": row}
    if not isinstance(row, dict):
        raise RowError(f"{where}: is {type(row).__name__}, not an object; write {{...}}")
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError for a key that occurs twice."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r:.60} occurs twice in an object")
    return entries


def _lines(file: Path) -> Iterator[tuple[int, int, int]]:
    """(begin, end, line number) of each line that is not blank."""
    begin = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.isspace():
                yield begin, begin + len(line), number
            begin += len(line)


def _elements(file: Path) -> Iterator[tuple[int, int, int]]:
    """(begin, end, index) of each element of a JSON array; holds the text and one element at a time."""
    try:
        text = file.read_bytes().decode(errors=ESCAPE)  # read_text would translate line ends and change offsets
        position, byte, index = _skip(text, 0, BOM), 0, 0
        if text[position : position + 1] != "[":
            raise ValueError(f"{file}: the file is not a list of rows; write [row, row, ...] or use .jsonl")
        position = _skip(text, position + 1, "")
        seen = 0
        while text[position : position + 1] != "]":
            end = _end(text, position)
            begin_byte = byte + len(text[seen:position].encode(errors=ESCAPE))
            byte, seen = begin_byte + len(text[position:end].encode(errors=ESCAPE)), end
            yield begin_byte, byte, index
            index, position = index + 1, _skip(text, end, ",")
        if _skip(text, position + 1, "") < len(text):
            raise ValueError(f"{file}: text follows the end of its list; write one list, or use .jsonl")
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: invalid JSON ({error}); correct it there") from None


def _end(text: str, position: int) -> int:
    """Position at which the element that begins at `position` ends. Raises JSONDecodeError if it does not end."""
    try:
        return DECODER.raw_decode(text, position)[1]
    except RecursionError:  # nested too deeply for the decoder; only this row may fail, when it is parsed
        depth = 0
        for token in NESTING.finditer(text, position):
            depth += (token[0] in "[{") - (token[0] in "]}")
            if not depth:
                return token.end()
        raise json.JSONDecodeError("an element does not end", text, position) from None


def _skip(text: str, position: int, separator: str) -> int:
    while position < len(text) and (text[position].isspace() or text[position] == separator):
        position += 1
    return position
