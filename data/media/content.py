"""The bytes of a medium, wherever they lie: a file, a stretch of an archive, or a column of a table."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from data.types import ImageRef, MediaError, Span, VideoRef


@contextmanager
def content(ref: VideoRef | ImageRef) -> Iterator[str | BinaryIO]:
    """What a decoder opens: a path, or a binary file. MediaError for what no decoder needs to be asked about."""
    if isinstance(ref.content, bytes):
        _check_size(ref.path, len(ref.content))
        yield io.BytesIO(ref.content)
    elif isinstance(ref.content, Span):
        check_file(ref.content.file)
        _check_size(ref.path, ref.content.size)
        with Path(ref.content.file).open("rb", buffering=0) as file:
            yield cast(BinaryIO, io.BufferedReader(Stretch(file, ref.content, ref.path), 1 << 16))
    else:
        check_file(ref.path)
        yield ref.path


class Stretch(io.RawIOBase):
    """A span of an open file as a file of its own; `name` is what decoders recognise the format by."""

    def __init__(self, file: io.FileIO, span: Span, name: str) -> None:
        self.file, self.span, self.name, self.place = file, span, name, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.span.size}[whence]
        return self.place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self.file.seek(self.span.begin + self.place)
        read = self.file.readinto(memoryview(buffer)[: max(self.span.size - self.place, 0)]) or 0
        self.place += read
        return read


def check_file(path: str) -> None:
    """MediaError, in our words, if there is no such file or nothing in it."""
    if not Path(path).is_file():
        raise MediaError(f"{path}: no such file; correct the row or data.media_root")
    _check_size(path, Path(path).stat().st_size)


def _check_size(path: str, size: int) -> None:
    if size == 0:
        raise MediaError(f"{path}: the file is empty; fetch it again or leave its rows out")
