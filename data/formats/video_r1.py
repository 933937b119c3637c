"""Video-R1's rows.

    {"problem": "What moves?", "problem_type": "multiple choice", "options": ["A. A dog", "B. A cat"],
     "data_type": "video", "path": "a.mp4", "process": "<think>...</think>", "solution": "<answer>A</answer>"}

The question is the problem with its options, the answer is the process, if there is one, and the solution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.formats import openai
from data.formats.conversation import text_of
from data.formats.roots import Root
from data.types import RowError, Sample

OWN = ("problem", "options", "process", "solution", "path", "data_type")


def sample(row: Mapping[str, Any], root: Root, where: str) -> Sample:
    """One row as a Sample. RowError, naming `where`, if it cannot be used."""
    kind, path, options = row.get("data_type"), row.get("path"), row.get("options") or []
    if path and kind not in ("video", "image"):
        raise RowError(f"{where}: data_type is {kind!r:.40}; write video or image")
    if not isinstance(options, list):
        raise RowError(f"{where}: options are {options!r:.60}; write a list")
    if path and any(row.get(key) for key in (f"{kind}", f"{kind}s")):
        raise RowError(f"{where}: names a {kind} under path and in a list; keep one of them")
    problem = text_of(row.get("problem"), "problem", where)
    if path and f"<{kind}>" not in problem:
        problem = f"<{kind}>{problem}"
    listed = ["Options:", *(text_of(option, "an option", where) for option in options)] if options else []
    answer = [text_of(row[key], key, where) for key in ("process", "solution") if row.get(key)]
    rest = {key: value for key, value in row.items() if key not in OWN} | ({f"{kind}s": [path]} if path else {})
    messages = [
        {"role": "user", "content": "\n".join([problem, *listed])},
        {"role": "assistant", "content": "\n".join(answer)},
    ]
    return openai.sample(rest | {"messages": messages}, root, where)
