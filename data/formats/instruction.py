"""Rows with one question and one answer, as in Alpaca, ms-swift and LLaMA-Factory.

    {"instruction": "<video>Answer briefly.", "input": "What moves?", "output": "A dog.", "videos": ["a.mp4"],
     "history": [["Who speaks?", "Nobody."]], "system": "You are a guide."}

"query" is accepted for "instruction" and "response" for "output". As in those tools, "input" follows the instruction on
a line of its own, and "history" holds earlier questions and answers, which are learned too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.formats import openai
from data.formats.conversation import text_of
from data.formats.roots import Root
from data.types import RowError, Sample

QUESTIONS, ANSWERS = ("instruction", "query"), ("output", "response")
OWN = (*QUESTIONS, *ANSWERS, "input", "history")


def sample(row: Mapping[str, Any], root: Root, where: str) -> Sample:
    """One row as a Sample. RowError, naming `where`, if it cannot be used."""
    question = [_text(row, keys, where) for keys in (QUESTIONS, ("input",))]
    pairs = [*_history(row, where), ("\n".join(filter(None, question)), _text(row, ANSWERS, where))]
    roles = ("user", "assistant")
    turns = [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair)]
    rest = {key: value for key, value in row.items() if key not in OWN}
    return openai.sample(rest | {"messages": turns}, root, where)


def _text(row: Mapping[str, Any], keys: tuple[str, ...], where: str) -> str:
    """The text under one of the keys, "" if there is none. Raises RowError if there are several."""
    present = [key for key in keys if row.get(key) not in (None, "")]
    if len(present) > 1:
        raise RowError(f"{where}: has both {' and '.join(present)}; keep one of them")
    return text_of(row[present[0]], present[0], where) if present else ""


def _history(row: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise RowError(f"{where}: history is {history!r:.60}; write [[question, answer], ...]")
    return [
        (text_of(question, "a question of history", where), text_of(answer, "an answer of history", where))
        for question, answer in history
    ]
