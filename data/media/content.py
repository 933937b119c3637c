"""Opens the bytes of a medium, from a file, a member of an archive, or a column of a table."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from data.types import ImageRef, MediaError, Span, VideoRef


@contextmanager
def content(ref: VideoRef | ImageRef) -> Iterator[str | BinaryIO]:
    """The medium as a path or a binary file, for a decoder. Raises MediaError if it is missing or empty."""
    if isinstance(ref.content, bytes):
        _check_size(ref.path, len(ref.content))
        yield io.BytesIO(ref.content)
    elif isinstance(ref.content, Span):
        check_file(ref.content.file)
        _check_size(ref.path, ref.content.size)
        with Path(ref.content.file).open("rb", buffering=0) as file:
            yield cast(BinaryIO, io.BufferedReader(SpanFile(file, ref.content, ref.path), 1 << 16))
    else:
        check_file(ref.path)
        yield ref.path


class SpanFile(io.RawIOBase):
    """A byte range of an open file as a file of its own; decoders recognise the format by `name`."""

    def __init__(self, file: io.FileIO, span: Span, name: str) -> None:
        self.file, self.span, self.name, self.position = file, span, name, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.span.size}[whence]
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self.file.seek(self.span.begin + self.position)
        read = self.file.readinto(memoryview(buffer)[: max(self.span.size - self.position, 0)]) or 0
        self.position += read
        return read


def check_file(path: str) -> None:
    """Raise MediaError if the file does not exist or is empty."""
    if not Path(path).is_file():
        raise MediaError(f"{path}: no such file; correct the row or data.media_root")
    _check_size(path, Path(path).stat().st_size)


def _check_size(path: str, size: int) -> None:
    if size == 0:
        raise MediaError(f"{path}: the file is empty; download it again or remove its rows")
