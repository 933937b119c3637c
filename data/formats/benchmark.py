"""Shared by the benchmark formats: questions with options, and videos in folders or zip files.

    evaluate.py data=Video-MME/videomme/test-00000-of-00001.parquet media_root=Video-MME format=video_mme ...

`media_root` is the folder into which the Hub's files were downloaded. A video is looked up in its folders, then in its
zip files, which are not unpacked. A video found in neither is missing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from data.formats.roots import Root
from data.formats.video_settings import PICTURES
from data.types import RowError, Span, Turn, VideoRef

ASK = "Answer with the option's letter from the given choices directly."  # the prompt of lmms-eval
LETTERS = "ABCDEFGHIJ"
HEADER = struct.Struct("<26xHH")  # local header of a zip member: lengths of its name and extra field


def choice(ref: VideoRef, question: str, options: Sequence[str], correct: int) -> tuple[Turn, Turn]:
    """The question with lettered options, and the letter of the correct one."""
    listed = [f"{letter}. {option}" for letter, option in zip(LETTERS, options)]
    return question_turns(ref, "\n".join([question, *listed, ASK]), LETTERS[correct])


def question_turns(ref: VideoRef, question: str, answer: str) -> tuple[Turn, Turn]:
    """A user turn with the video and the question, and the answer."""
    return Turn("user", (ref, question)), Turn("assistant", (answer,))


def option_index(letter: str, options: Sequence[str], where: str) -> int:
    """Index of the correct option. Raises RowError for a letter that is not among the options."""
    index = LETTERS.find(letter.strip()[:1]) if letter.strip() else -1
    if not 0 <= index < len(options):
        raise RowError(
            f"{where}: the answer {letter!r} is not among the {len(options)} options; use the split with answers"
        )
    return index


def video(root: Root, names: Iterable[str], where: str) -> VideoRef:
    """The first of the names that exists, as a file or in a zip file; otherwise the first name, which is missing."""
    candidates = [root.find(name, where) for name in names]
    for path, content in candidates:
        if content is not None or Path(path).is_file():
            return VideoRef(path, content=content)
    folder = getattr(root, "path", None)
    members = _members(folder) if folder is not None else {}
    for path, _ in candidates:
        if span := members.get(Path(path).name):
            return VideoRef(path, content=span)
    return VideoRef(candidates[0][0])


@cache
def _members(folder: str) -> dict[str, Span]:
    """The members of all zip files in a folder, by name. Raises ValueError if members are compressed."""
    spans: dict[str, Span] = {}
    for path in sorted(Path(folder).rglob("*.zip")):
        try:
            with ZipFile(path) as archive, path.open("rb") as file:
                for member in archive.infolist():
                    if member.is_dir() or Path(member.filename).suffix.lower() in (".srt", ".json", ".txt", *PICTURES):
                        continue
                    if member.compress_type != ZIP_STORED:
                        raise ValueError(f"{path}: its videos are compressed: unzip it in its folder")
                    file.seek(member.header_offset)
                    begin = member.header_offset + 30 + sum(HEADER.unpack(file.read(30)))
                    spans.setdefault(Path(member.filename).name, Span(str(path), begin, member.file_size))
        except BadZipFile as error:
            raise ValueError(f"{path}: truncated or corrupt zip file ({error}): download it again") from None
    return spans
