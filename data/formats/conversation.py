"""What every conversation format shares: marks in text, media references, and the checks of a finished sample."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xxhash import xxh3_64_hexdigest

from data.answer_metrics import METRICS
from data.formats.roots import Root
from data.formats.video_settings import (
    frame_list,
    is_picture,
    picture_names,
    refuse_picture_settings,
    settings_of,
)
from data.types import ImageRef, RowError, Sample, Span, VideoRef

MARK = re.compile(r"\s*<(video|image)>\s*")  # white space around a mark is layout, not text

Part = str | VideoRef | ImageRef


class Media:
    """The media that a row lists beside its text, handed out in order as their marks come up."""

    def __init__(self, row: Mapping[str, Any], root: Root, where: str) -> None:
        self.where, self.row = where, row
        self.videos = [video(entry, row, root, where) for entry in _listed_videos(row)]
        self.images = [image(entry, root, where) for entry in _listed(row, "image", "images")]
        if self.images:
            refuse_picture_settings(row, where)
        self.taken = {"video": 0, "image": 0}

    def split(self, text: str) -> tuple[Part, ...]:
        """`text` with each mark replaced by the next medium of its kind."""
        pieces = MARK.split(text)  # text, kind, text, kind, ... text
        parts = [self._take(piece) if i % 2 else piece for i, piece in enumerate(pieces)]
        return tuple(part for part in parts if part != "")

    def check_all_taken(self) -> None:
        """RowError if a listed medium has no mark."""
        for kind, listed in (("video", self.videos), ("image", self.images)):
            if self.taken[kind] < len(listed):
                raise RowError(
                    f"{self.where}: lists {len(listed)} {kind}(s) but has {self.taken[kind]} <{kind}> mark(s); "
                    f"write one <{kind}> where each belongs"
                )

    def _take(self, kind: str) -> VideoRef | ImageRef:
        listed: Sequence[VideoRef | ImageRef] = self.videos if kind == "video" else self.images
        place = self.taken[kind]
        self.taken[kind] += 1
        if place >= len(listed):
            raise RowError(
                f"{self.where}: <{kind}> mark number {place + 1} has no {kind}, the row lists {len(listed)}; "
                f'name its file under "{kind}" or take the mark out'
            )
        return listed[place]


def video(entry: Any, row: Mapping[str, Any], root: Root, where: str) -> VideoRef:
    """A reference from a path or {"video" | "path" | "url": path}, or {"bytes": content}; "video_start", "video_end" in
    seconds, in the entry or for all videos of the row."""
    fields = entry if isinstance(entry, Mapping) else {"video": entry}
    start, end = (_seconds(fields.get(key, row.get(key)), key, where) for key in ("video_start", "video_end"))
    listed = picture_names(fields, root, where)
    settings = settings_of(fields, row, where, listed=listed is not None)
    if listed is None:
        if fields.get("timestamps") is not None:
            raise RowError(f"{where}: timestamps belong to a list of frames; remove them from the video file's entry")
        path, content = _found(fields, "video", root, where)
        return VideoRef(path, start, end, content, settings)
    if start is not None or end is not None:
        raise RowError(f"{where}: video_start and video_end cannot cut a list of frames; list fewer of them")
    names, folder = listed
    pictures = [image(name, root, where) for name in names]
    frames = frame_list(pictures, fields, row, where)
    return VideoRef(folder or f"{pictures[0].path} and {len(pictures) - 1} more", content=frames, settings=settings)


def image(entry: Any, root: Root, where: str) -> ImageRef:
    """A reference from a path or {"image" | "path" | "url": path}, or {"bytes": content}."""
    fields = entry if isinstance(entry, Mapping) else {"image": entry}
    refuse_picture_settings(fields, where)
    return ImageRef(*_found(fields, "image", root, where))


def role(name: Any, names: Mapping[str, str], where: str) -> str:
    """Our name of a role. RowError if it is none of `names`."""
    if not isinstance(name, str) or name not in names:
        raise RowError(f"{where}: unknown role {name!r}; use one of {', '.join(names)}")
    return names[name]


def graded(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The row's grading keys: "kind", "metric" (data.answer_metrics) and "answers". Raises RowError."""
    kind, metric, answers = row.get("kind"), row.get("metric"), row.get("answers")
    if metric is not None and metric not in METRICS:
        raise RowError(f"{where}: metric {metric!r} is unknown; use one of {', '.join(METRICS)}")
    listed = answers if isinstance(answers, list) else [] if answers is None else [answers]
    accepted = tuple(text_of(each, "an accepted answer", where) for each in listed)
    return {"kind": "" if kind is None else str(kind), "metric": metric, "answers": accepted}


def finished(sample: Sample, where: str) -> Sample:
    """The sample, checked. RowError if there is nothing to learn from it or its turns are out of order."""
    roles = [turn.role for turn in sample.turns]
    if "assistant" not in roles:
        raise RowError(f"{where}: has no assistant turn, so nothing to learn; add the answer or take the row out")
    if "system" in roles[1:]:
        raise RowError(f"{where}: has a system turn in place {1 + roles[1:].index('system') + 1}; put it first")
    for place, turn in enumerate(sample.turns, 1):
        if not any(part.strip() if isinstance(part, str) else True for part in turn.parts):
            raise RowError(f"{where}: turn {place} ({turn.role}) is empty; fill it in or take the row out")
        if turn.role == "assistant" and not all(isinstance(part, str) for part in turn.parts):
            raise RowError(f"{where}: turn {place} is the assistant's but shows media; move them to a user turn")
    return sample


def text_of(value: Any, what: str, where: str) -> str:
    """`value` if it is text. RowError if not."""
    if not isinstance(value, str):
        raise RowError(f"{where}: {what} is {type(value).__name__} {value!r:.60}; write text there")
    return value


def turns_of(row: Mapping[str, Any], key: str, where: str) -> Iterable[Mapping[str, Any]]:
    """The row's list of turns. RowError if it is no list of objects."""
    turns = row.get(key)
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not all(isinstance(t, Mapping) for t in turns):
        raise RowError(f'{where}: "{key}" is {type(turns).__name__}; write a list of turns')
    return turns


def _listed(row: Mapping[str, Any], *keys: str) -> list[Any]:
    values = [row[key] for key in keys if row.get(key) is not None]
    return [entry for value in values for entry in (value if isinstance(value, list) else [value])]


def _listed_videos(row: Mapping[str, Any]) -> list[Any]:
    """A list of pictures is one video."""
    values = [row[key] for key in ("video", "videos") if row.get(key) is not None]
    several = (isinstance(value, list) and not (value and all(map(is_picture, value))) for value in values)
    return [entry for value, many in zip(values, several) for entry in (value if many else [value])]


def _found(fields: Mapping[str, Any], kind: str, root: Root, where: str) -> tuple[str, Span | bytes | None]:
    """Name and content of a medium."""
    path = next((fields[key] for key in (kind, "path", "url") if fields.get(key) is not None), None)
    if isinstance(content := fields.get("bytes"), bytes):
        return f"{path or kind}#{xxh3_64_hexdigest(content)}", content  # a name that only the same content has
    if not isinstance(path, str) or not path:
        raise RowError(f"{where}: {kind} is {path!r:.60}; give the path of a file")
    if re.match(r"(https?|s3|gs|data):", path):
        raise RowError(f"{where}: {kind} {path[:60]!r} is not a local file; fetch it first and give its path")
    return root.find(path.removeprefix("file://"), where)


def _seconds(value: Any, key: str, where: str) -> float | None:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return None if value is None else float(value)
    raise RowError(f"{where}: {key}={value!r:.40}; give seconds as a number")
