"""What the readers of benchmarks share: a question with its options, and the video among folders and zip files.

    evaluate.py data=Video-MME/videomme/test-00000-of-00001.parquet media_root=Video-MME format=video_mme ...

`media_root` is the folder that the Hub's files were fetched into; a video is looked for in its folders, then in the zip
files there, which stay as they are. One that is nowhere counts as missing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from data.formats.roots import Root
from data.types import RowError, Span, Turn, VideoRef

ASK = "Answer with the option's letter from the given choices directly."  # as lmms-eval asks
LETTERS = "ABCDEFGHIJ"
HEADER = struct.Struct("<26xHH")  # of a zip's member: the lengths of its name and of what follows that


def choice(ref: VideoRef, question: str, options: Sequence[str], right: int) -> tuple[Turn, Turn]:
    """The question with lettered options, and the right one's letter."""
    listed = [f"{letter}. {option}" for letter, option in zip(LETTERS, options)]
    return asked(ref, "\n".join([question, *listed, ASK]), LETTERS[right])


def asked(ref: VideoRef, question: str, answer: str) -> tuple[Turn, Turn]:
    return Turn("user", (ref, question)), Turn("assistant", (answer,))


def place_of(letter: str, options: Sequence[str], where: str) -> int:
    """Of the right option. RowError for a letter that is not offered."""
    place = LETTERS.find(letter.strip()[:1]) if letter.strip() else -1
    if not 0 <= place < len(options):
        raise RowError(f"{where}: the answer {letter!r} is none of {len(options)} options; use the split with answers")
    return place


def video(root: Root, names: Iterable[str], where: str) -> VideoRef:
    """The first of the names that is there, as a file or within a zip; else the first name, which is then missing."""
    found = [root.find(name, where) for name in names]
    for path, content in found:
        if content is not None or Path(path).is_file():
            return VideoRef(path, content=content)
    folder = getattr(root, "path", None)
    members = _members(folder) if folder is not None else {}
    for path, _ in found:
        if span := members.get(Path(path).name):
            return VideoRef(path, content=span)
    return VideoRef(found[0][0])


@cache
def _members(folder: str) -> dict[str, Span]:
    """The files within the zip files of a folder, by name. ValueError for a zip whose members are compressed."""
    spans: dict[str, Span] = {}
    for path in sorted(Path(folder).rglob("*.zip")):
        try:
            with ZipFile(path) as archive, path.open("rb") as file:
                for member in archive.infolist():
                    if member.is_dir() or Path(member.filename).suffix.lower() in (".srt", ".json", ".txt"):
                        continue
                    if member.compress_type != ZIP_STORED:
                        raise ValueError(f"{path}: its videos are compressed: extract it beside itself, with unzip")
                    file.seek(member.header_offset)
                    begin = member.header_offset + 30 + sum(HEADER.unpack(file.read(30)))
                    spans.setdefault(Path(member.filename).name, Span(str(path), begin, member.file_size))
        except BadZipFile as error:
            raise ValueError(f"{path}: truncated or corrupt zip file ({error}): download it again") from None
    return spans
