"""WebDataset shards: .tar files, read by place without being unpacked.

Members of one sample share their name up to the first dot and stand side by side: 0007.json, which holds the row, and
its media. The row names them as members ("0007.mp4"), or lists none, and its marks stand for them in order.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.formats.roots import Members
from data.sources.files import ESCAPE, parsed
from data.types import RowError, Span

VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".gif")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
LISTS = ("video", "videos", "image", "images")


@dataclass(frozen=True)
class TarFile:
    """Where the members of a .tar file lie, found once and kept at `path`."""

    file: Path
    path: Path
    identity: str

    def make(self, path: Path) -> None:
        members = _members(self.file)
        runs = [len(list(group)) for _, group in groupby(members, lambda member: _key(member[0]))]
        with path.open("wb") as file:
            np.savez(
                file,
                first_R=np.cumsum([0, *runs]),
                spans_M2=np.array([span for _, *span in members], dtype=np.int64).reshape(-1, 2),
                name_M=np.cumsum([0, *(len(name.encode(errors=ESCAPE)) for name, *_ in members)]),
                names=np.frombuffer("".join(name for name, *_ in members).encode(errors=ESCAPE), dtype=np.uint8),
            )

    def rows(self) -> TarRows:
        with np.load(self.path) as kept:
            return TarRows(self.file, self.identity, **kept)


@dataclass(frozen=True)
class TarRows:
    """Rows of a shard by their place in it."""

    file: Path
    identity: str
    first_R: np.ndarray  # first member of each row; one entry more
    spans_M2: np.ndarray  # begin and size of each member, bytes
    name_M: np.ndarray  # begin of each name in `names`; one entry more
    names: np.ndarray  # uint8, UTF-8

    def __len__(self) -> int:
        return len(self.first_R) - 1

    def __getitem__(self, place: int) -> dict[str, Any]:
        members = self.root(place).spans
        where = self.where(place)
        found = [span for name, span in members.items() if name.endswith(".json")]
        if len(found) != 1:
            raise RowError(f"{where}: has members {sorted(members)}; pack one .json, the row, with its media")
        with self.file.open("rb") as file:
            file.seek(found[0].begin)
            text = file.read(found[0].size)
        row = parsed(text, where)
        return row if any(key in row for key in LISTS) else row | _unlisted(text, members)

    def where(self, place: int) -> str:
        return f"{self.file}/{_key(self._name(int(self.first_R[place])))}"

    def root(self, place: int) -> Members:
        members, archive = range(self.first_R[place], self.first_R[place + 1]), str(self.file)
        return Members(archive, {self._name(m): Span(archive, *self.spans_M2[m].tolist()) for m in members})

    def _name(self, member: int) -> str:
        return self.names[self.name_M[member] : self.name_M[member + 1]].tobytes().decode(errors=ESCAPE)


def _members(file: Path) -> list[tuple[str, int, int]]:
    """(name, begin, size) of each. ValueError for a file that is no whole archive."""
    spans: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for each in archive:
                if each.isreg():
                    spans[each.name] = each.offset_data, each.size
                elif each.islnk() and each.linkname in spans:  # tar's way to store a file that it has stored before
                    spans[each.name] = spans[each.linkname]
            end = archive.offset
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{file}: is no whole .tar file ({error}); fetch the shard again") from None
    if file.stat().st_size < end + tarfile.BLOCKSIZE:  # of the empty block that closes an archive
        raise ValueError(f"{file}: ends early, at byte {file.stat().st_size}; fetch the shard again")
    return [(name, *span) for name, span in spans.items()]


def _key(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.parent / path.name.partition(".")[0])


def _unlisted(text: bytes, members: dict[str, Span] | Any) -> dict[str, list[str]]:
    """The media of a row that lists none, where its text has marks for them."""
    videos, images = ([name for name in members if name.lower().endswith(ends)] for ends in (VIDEOS, IMAGES))
    marked = {"videos": b"<video>" in text or (not images and b"<image>" in text), "images": b"<image>" in text}
    return {key: names for key, names in (("videos", videos), ("images", images)) if names and marked[key]}
