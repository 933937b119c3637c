"""VideoChat2-IT's rows: questions and answers on one video or image.

    {"video": "a.mp4", "QA": [{"i": "You are a guide.", "q": "What moves?", "a": "A dog."}, ...],
     "start": 1.5, "end": 9}

As in its own training, the instruction "i" of the first entry is the system prompt and a caption has an empty "q". The
medium comes before the first question; "start" and "end" are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.formats import openai
from data.formats.conversation import text_of, turns_of
from data.formats.roots import Root
from data.types import RowError, Sample

SEGMENT = {"start": "video_start", "end": "video_end"}


def sample(row: Mapping[str, Any], root: Root, where: str) -> Sample:
    """One row as a Sample. RowError, naming `where`, if it cannot be used."""
    pairs = list(turns_of(row, "QA", where))
    instructions = {text for pair in pairs if (text := _text(pair, "i", where))}
    if len(instructions) > 1:
        raise RowError(f"{where}: its QA have {len(instructions)} instructions; make a row of each")
    messages: list[dict[str, Any]] = [{"role": "system", "content": text} for text in instructions]
    marks = "".join(f"<{kind}>" for kind in ("video", "image") if row.get(kind))
    for pair in pairs:
        weights = {key: value for key, value in pair.items() if key not in ("i", "q", "a")}
        messages.append({"role": "user", "content": marks + _text(pair, "q", where)})
        messages.append(weights | {"role": "assistant", "content": _text(pair, "a", where)})
        marks = ""
    rest = {SEGMENT.get(key, key): value for key, value in row.items() if key != "QA"}
    return openai.sample(rest | {"messages": messages}, root, where)


def _text(pair: Mapping[str, Any], key: str, where: str) -> str:
    return "" if pair.get(key) is None else text_of(pair[key], f'"{key}"', where)
