"""Rows with a prompt and a completion, as in TRL: only the completion is learned.

    {"prompt": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What moves?"}]}],
     "completion": [{"role": "assistant", "content": "A dog."}], "videos": ["a.mp4"]}

Both may be text, which is one turn: {"prompt": "<video>What moves?", "completion": "A dog.", "videos": ["a.mp4"]}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.formats import openai
from data.formats.conversation import turns_of
from data.formats.roots import Root
from data.types import Sample


def sample(row: Mapping[str, Any], root: Root, where: str) -> Sample:
    """One row as a Sample. RowError, naming `where`, if it cannot be used."""
    prompt = _turns(row, "prompt", "user", where)
    unlearned = [{**turn, "weight": 0} if turn.get("role") == "assistant" else turn for turn in prompt]
    rest = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
    return openai.sample(rest | {"messages": unlearned + _turns(row, "completion", "assistant", where)}, root, where)


def _turns(row: Mapping[str, Any], key: str, role: str, where: str) -> list[Mapping[str, Any]]:
    if isinstance(row.get(key), str):
        return [{"role": role, "content": row[key]}]
    return list(turns_of(row, key, where))
