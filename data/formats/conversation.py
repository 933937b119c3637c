"""Shared by the conversation formats: media marks in text, media references, and checks of the finished sample."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from xxhash import xxh3_64_hexdigest

from data.answer_metrics import METRICS
from data.formats.keys import PIXELS, RESIZED, SETTINGS, check_part, check_row, system_of
from data.formats.roots import Root
from data.formats.video_settings import (
    frame_list,
    is_picture,
    picture_names,
    refuse_picture_settings,
    settings_of,
)
from data.types import ImageRef, RowError, Sample, Span, Turn, VideoRef

MARK = re.compile(r"\s*<(video|image)>\s*")  # whitespace around a mark is not part of the text

FILE_URL = re.compile(r"^file:(//(localhost(?=/))?)?", re.IGNORECASE)
MAX_PATH_LENGTH = 4096  # characters
NAMES = ("type", "path", "url", "bytes")  # keys of a medium's entry, with its settings and its kind

ContentPart = str | VideoRef | ImageRef


class Media:
    """The media that a row lists outside its text, assigned to the marks in the text in order."""

    def __init__(self, row: Mapping[str, Any], root: Root, where: str) -> None:
        self.row, self.root, self.where = row, root, where
        self.listed = {"video": _listed_videos(row), "image": _listed(row, "image", "images")}
        if self.listed["image"]:
            refuse_picture_settings(row, where)
        self.taken = {"video": 0, "image": 0}

    def split(self, text: str) -> tuple[ContentPart, ...]:
        """`text` with each mark replaced by the next medium of its kind."""
        pieces = MARK.split(text)  # text, kind, text, kind, ... text
        parts = [self.take(piece) if i % 2 else piece for i, piece in enumerate(pieces)]
        return tuple(part for part in parts if part != "")

    def check_all_taken(self) -> None:
        """Raise RowError if a listed medium has no mark."""
        for kind, listed in self.listed.items():
            if self.taken[kind] < len(listed):
                raise RowError(
                    f"{self.where}: lists {len(listed)} {kind}(s) but has {self.taken[kind]} <{kind}> mark(s); "
                    f"write one <{kind}> per {kind}"
                )

    def take(self, kind: str, part: Mapping[str, Any] | None = None) -> VideoRef | ImageRef:
        """The next listed medium of a kind, with the settings of its content part. Raises RowError if there is none."""
        index, listed = self.taken[kind], self.listed[kind]
        self.taken[kind] += 1
        if index >= len(listed):
            raise RowError(
                f"{self.where}: <{kind}> mark number {index + 1} has no {kind}, the row lists {len(listed)}; "
                f'name its file under "{kind}" or remove the mark'
            )
        entry = listed[index]
        if part is not None:
            settings = {key: value for key, value in part.items() if value not in (None, "") and key != "type"}
            entry = {**(entry if isinstance(entry, Mapping) else {kind: entry}), **settings}
        return video(entry, self.row, self.root, self.where) if kind == "video" else image(entry, self.root, self.where)


def video(entry: Any, row: Mapping[str, Any], root: Root, where: str) -> VideoRef:
    """A video reference from a path, {"video" | "path" | "url": path} or {"bytes": content}.

    "video_start" and "video_end" are seconds, in the entry or in the row for all of its videos.
    """
    fields = entry if isinstance(entry, Mapping) else {"video": entry}
    check_part(fields, (*NAMES, "video", "frames", *SETTINGS), where)
    start, end = (_seconds(fields.get(key, row.get(key)), key, where) for key in ("video_start", "video_end"))
    listed = picture_names(fields, root, where)
    settings = settings_of(fields, row, where, listed=listed is not None)
    if listed is None:
        if fields.get("timestamps") is not None:
            raise RowError(f"{where}: timestamps belong to a list of frames; remove them from the video file's entry")
        path, content = _locate(fields, "video", root, where)
        return VideoRef(path, start, end, content, settings)
    if start is not None or end is not None:
        raise RowError(f"{where}: video_start and video_end cannot cut a list of frames; list fewer of them")
    names, folder = listed
    pictures = [image(name, root, where) for name in names]
    frames = frame_list(pictures, fields, row, where)
    path = f"{pictures[0].path} and {len(pictures) - 1} more" if folder is None else os.path.dirname(pictures[0].path)  # noqa: PTH120
    return VideoRef(path, content=frames, settings=settings)


def image(entry: Any, root: Root, where: str) -> ImageRef:
    """An image reference from a path, {"image" | "path" | "url": path} or {"bytes": content}."""
    fields = entry if isinstance(entry, Mapping) else {"image": entry}
    check_part(fields, (*NAMES, "image", *PIXELS, *RESIZED), where)
    refuse_picture_settings(fields, where)
    return ImageRef(*_locate(fields, "image", root, where))


def role(name: Any, names: Mapping[str, str], where: str) -> str:
    """The role that a name in the data stands for. Raises RowError if it is not among `names`."""
    if not isinstance(name, str) or name not in names:
        raise RowError(f"{where}: unknown role {name!r}; use one of {', '.join(names)}")
    return names[name]


def grading_of(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The row's grading keys: "kind", "metric" (data.answer_metrics) and "answers". Raises RowError."""
    kind, metric, answers = row.get("kind"), row.get("metric"), row.get("answers")
    if metric is not None and metric not in METRICS:
        raise RowError(f"{where}: metric {metric!r} is unknown; use one of {', '.join(METRICS)}")
    listed = answers if isinstance(answers, list) else [] if answers is None else [answers]
    accepted = tuple(text_of(answer, "an accepted answer", where) for answer in listed)
    return {"kind": "" if kind is None else str(kind), "metric": metric, "answers": accepted}


def sample_of(row: Mapping[str, Any], turns: Sequence[Turn], where: str) -> Sample:
    """The row's sample, with the system prompt that the row gives outside its turns.

    Raises RowError for a key that would be ignored, if nothing is to be learned, or for turns out of order.
    """
    texts = [part for turn in turns for part in turn.parts if isinstance(part, str)]
    check_row(row, texts, where)
    name = row.get("id")
    sample = Sample(
        where if name in (None, "") else str(name), _with_system(row, turns, where), **grading_of(row, where)
    )
    return finished(sample, where)


def _with_system(row: Mapping[str, Any], turns: Sequence[Turn], where: str) -> tuple[Turn, ...]:
    prompt = system_of(row, where)
    if prompt is None or turns[:1] == [Turn("system", (prompt,))]:
        return tuple(turns)
    if any(turn.role == "system" for turn in turns):
        raise RowError(f"{where}: has both a system prompt and a different system turn; keep one of them")
    return Turn("system", (prompt,)), *turns


def finished(sample: Sample, where: str) -> Sample:
    """The sample, checked. Raises RowError if nothing is to be learned from it or its turns are out of order."""
    roles = [turn.role for turn in sample.turns]
    if "assistant" not in roles:
        raise RowError(f"{where}: has no assistant turn, so nothing to learn; add the answer or remove the row")
    if not any(turn.is_target for turn in sample.turns):
        raise RowError(f"{where}: no assistant turn is learned, all have weight 0; remove the row")
    if "system" in roles[1:]:
        raise RowError(f"{where}: the system turn is number {1 + roles[1:].index('system') + 1}; put it first")
    for number, turn in enumerate(sample.turns, 1):
        if not any(part.strip() if isinstance(part, str) else True for part in turn.parts):
            raise RowError(f"{where}: turn {number} ({turn.role}) is empty; fill it in or remove the row")
        if turn.role != "user" and not all(isinstance(part, str) for part in turn.parts):
            raise RowError(f"{where}: turn {number} ({turn.role}) contains media; move them to a user turn")
    return sample


def text_of(value: Any, what: str, where: str) -> str:
    """`value`, which must be text. Raises RowError otherwise."""
    if not isinstance(value, str):
        raise RowError(f"{where}: {what} is {type(value).__name__} {value!r:.60}; write text there")
    return value


def turns_of(row: Mapping[str, Any], key: str, where: str) -> Iterable[Mapping[str, Any]]:
    """The row's list of turns. Raises RowError if it is not a list of objects."""
    turns = row.get(key)
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not all(isinstance(t, Mapping) for t in turns):
        raise RowError(f'{where}: "{key}" is {type(turns).__name__}; write a list of turns')
    return turns


def _listed(row: Mapping[str, Any], *keys: str) -> list[Any]:
    values = [entry for key in keys for entry in (row[key] if isinstance(row.get(key), list) else [row.get(key)])]
    return [entry for entry in values if not _is_missing(entry)]


def _is_missing(value: Any) -> bool:
    """True for null and "", which name no medium."""
    return value is None or value == ""


def _listed_videos(row: Mapping[str, Any]) -> list[Any]:
    """The videos that a row lists; a list of pictures is one video."""
    values = [row[key] for key in ("video", "videos") if not _is_missing(row.get(key))]
    several = (isinstance(value, list) and not (value and all(map(is_picture, value))) for value in values)
    entries = [entry for value, many in zip(values, several) for entry in (value if many else [value])]
    return [entry for entry in entries if not _is_missing(entry)]


def _locate(fields: Mapping[str, Any], kind: str, root: Root, where: str) -> tuple[str, Span | bytes | None]:
    """Path and content of a medium; content None: a file at the path."""
    names = [fields[key] for key in (kind, "path", "url") if not _is_missing(fields.get(key))]
    content = fields.get("bytes")
    if names and isinstance(names[0], bytes):  # a binary column
        content = names.pop(0)
    path = names[0] if names else None
    if any(name != path for name in names):
        raise RowError(f"{where}: {kind} has the names {names!r:.120}; give one")
    if isinstance(content, bytes):
        return f"{path or kind}#{xxh3_64_hexdigest(content)}", content  # a name unique to the content
    if content is not None:
        raise RowError(f"{where}: bytes of {kind} are {type(content).__name__}; write them to a file and give its path")
    if not isinstance(path, str):
        raise RowError(f"{where}: {kind} is {path!r:.60}; give the path of a file")
    if len(path) > MAX_PATH_LENGTH:
        raise RowError(f"{where}: {kind} is text of {len(path)} characters; write its content to a file, give the path")
    if re.match(r"(?!file:)[a-z][a-z0-9+.-]+://|data:", path, re.IGNORECASE):
        raise RowError(f"{where}: {kind} {path[:60]!r} is not a local file; fetch it first and give its path")
    if (name := FILE_URL.sub("", path, count=1)) != path:
        name = unquote(name)
    return root.find(name, where)


def _seconds(value: Any, key: str, where: str) -> float | None:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return None if value is None else float(value)
    raise RowError(f"{where}: {key}={value!r:.40}; give seconds as a number")
