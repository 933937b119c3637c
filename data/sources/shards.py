"""WebDataset shards: .tar files with random access to rows, without unpacking.

The members of a sample are consecutive and share their name up to the first dot: 0007.json with the row, and its media.
The row names its media as members ("0007.mp4"), or lists none; then its marks refer to the media members in order.
A 0007.txt instead of the row is a caption: the answer to a user turn that contains only the media.
The pictures in a folder 0007/ after 0007.json or 0007.txt are one video, which a row may name "0007".
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
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
CONVERSATIONS = {"messages", "conversations", "QA", "completion", "solution", "output", "response"}
LISTS = ("video", "videos", "image", "images")


@dataclass(frozen=True)
class TarFile:
    """The byte offsets of the members of a .tar file, computed once and stored at `path`."""

    file: Path
    path: Path
    identity: str

    def make(self, path: Path) -> None:
        members = _members(self.file)
        runs = [len(list(group)) for _, group in groupby(_row_keys([name for name, *_ in members]))]
        with path.open("wb") as file:
            np.savez(
                file,
                first_R=np.cumsum([0, *runs]),
                spans_M2=np.array([span for _, *span in members], dtype=np.int64).reshape(-1, 2),
                name_M=np.cumsum([0, *(len(name.encode(errors=ESCAPE)) for name, *_ in members)]),
                names=np.frombuffer("".join(name for name, *_ in members).encode(errors=ESCAPE), dtype=np.uint8),
            )

    def rows(self) -> TarRows:
        with np.load(self.path) as arrays:
            return TarRows(self.file, self.identity, **arrays)


@dataclass(frozen=True)
class TarRows:
    """Rows of a shard by index."""

    file: Path
    identity: str
    first_R: np.ndarray  # [rows + 1] first member of each row
    spans_M2: np.ndarray  # [members, 2] offset and size in bytes
    name_M: np.ndarray  # [members + 1] offset of each name in `names`
    names: np.ndarray  # uint8: all names in UTF-8, concatenated

    def __len__(self) -> int:
        return len(self.first_R) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        members, where = self.root(index).spans, self.where(index)
        texts = {end: [name for name in members if name.endswith(end)] for end in (".json", ".txt")}
        if len(texts[".json"]) > 1 or len(texts[".txt"]) > 1 or not any(texts.values()):
            raise RowError(
                f"{where}: has members {sorted(members)}; pack one .json, the row, or one .txt with its media"
            )
        row = {} if not texts[".json"] else parsed(self._read(members[texts[".json"][0]]), where)
        row = row if any(row.get(key) for key in LISTS) else row | _unlisted(row, members)
        return row if not texts[".txt"] else row | self._captioned(row, members[texts[".txt"][0]], where)

    def _captioned(self, row: dict[str, Any], caption: Span, where: str) -> dict[str, Any]:
        """The conversation of a caption: a user turn that contains only the media, and the caption as its answer."""
        if conversation := sorted(CONVERSATIONS & row.keys()):
            raise RowError(f"{where}: has both a .txt and a .json with {conversation[0]}; pack one of them")
        try:
            text = self._read(caption).decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise RowError(f"{where}: its .txt is not UTF-8 ({error}); write it again") from None
        marks = "".join(f"<{key.removesuffix('s')}>" * _count(row.get(key)) for key in LISTS)
        return {"messages": [{"role": "user", "content": marks}, {"role": "assistant", "content": text}]}

    def _read(self, span: Span) -> bytes:
        with self.file.open("rb") as file:
            file.seek(span.begin)
            return file.read(span.size)

    def where(self, index: int) -> str:
        names = map(self._name, range(self.first_R[index], self.first_R[index + 1]))
        return f"{self.file}/{_key(min(names, key=lambda name: name.count('/')))}"

    def root(self, index: int) -> Members:
        members, archive = range(self.first_R[index], self.first_R[index + 1]), str(self.file)
        return Members(archive, {self._name(m): Span(archive, *self.spans_M2[m].tolist()) for m in members})

    def _name(self, member: int) -> str:
        return self.names[self.name_M[member] : self.name_M[member + 1]].tobytes().decode(errors=ESCAPE)


def _members(file: Path) -> list[tuple[str, int, int]]:
    """(name, offset, size) of each member. Raises ValueError if the archive is truncated or corrupt."""
    spans: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                if member.isreg():
                    spans[member.name] = member.offset_data, member.size
                elif member.islnk() and member.linkname in spans:  # tar stores a repeated file as a hard link
                    spans[member.name] = spans[member.linkname]
            end = archive.offset
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{file}: truncated or corrupt tar archive ({error}); download the shard again") from None
    if file.stat().st_size < end + tarfile.BLOCKSIZE:  # an archive ends in an empty block
        raise ValueError(f"{file}: ends early, at byte {file.stat().st_size}; download the shard again")
    return [(name, *span) for name, span in spans.items()]


def _row_keys(names: Sequence[str]) -> list[str]:
    """The key of the row that each member belongs to; a member in a folder that a row is named after is the row's."""
    rows = {_key(name) for name in names if name.endswith((".json", ".txt"))}
    return [
        next((str(folder) for folder in PurePosixPath(name).parents if str(folder) in rows), _key(name))
        for name in names
    ]


def _key(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.parent / path.name.partition(".")[0])


def _count(listed: Any) -> int:
    return len(listed) if isinstance(listed, list) else int(bool(listed))


def _unlisted(row: dict[str, Any], members: Mapping[str, Span]) -> dict[str, list[str]]:
    """The media of a row that lists none: all media members that its content parts do not name.

    Pictures in a folder are one video, their folder.
    """
    named = json.dumps(row, ensure_ascii=False)
    top = min(name.count("/") for name in members)
    kinds = {"videos": VIDEOS, "images": IMAGES}
    members_of_kind = {
        key: [name for name in members if name.lower().endswith(ends) and name.count("/") == top]
        for key, ends in kinds.items()
    }
    folders = (name.rpartition("/")[0] for name in members if name.lower().endswith(IMAGES) and name.count("/") > top)
    members_of_kind["videos"] += dict.fromkeys(folders)
    return {
        key: unnamed
        for key, names in members_of_kind.items()
        if (unnamed := [n for n in names if f'"{n}"' not in named])
    }
