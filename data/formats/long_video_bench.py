"""LongVideoBench with the files of the Hub: validation-*.parquet or lvb_val.json, and videos in videos/.

Subtitles are not used.

{"id": "86CxyhFV9MI_0", "video_path": "86CxyhFV9MI.mp4", "question": "...", "candidates": ["a", "b"],
 "correct_choice": 1, "question_category": "T2A", "duration_group": 15}        or "option0" ... "option4", "N/A" if none
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.formats.benchmark import choice, video
from data.formats.conversation import finished, text_of
from data.formats.roots import Root
from data.types import RowError, Sample


def sample(row: Mapping[str, Any], root: Root, where: str) -> Sample:
    """One row as a Sample, its kind the question's category. RowError, naming `where`, if it cannot be used."""
    listed = row.get("candidates") or [row.get(f"option{i}") for i in range(5)]
    options = [str(option) for option in listed if option not in (None, "N/A")]
    correct = row.get("correct_choice")
    if not isinstance(correct, int) or not 0 <= correct < len(options):
        raise RowError(
            f"{where}: correct_choice={correct!r} is not among the {len(options)} options; use the validation split"
        )
    path = text_of(row.get("video_path"), "video_path", where)
    turns = choice(
        video(root, [f"videos/{path}", path], where), text_of(row.get("question"), "question", where), options, correct
    )
    return finished(Sample(str(row.get("id", where)), turns, kind=str(row.get("question_category", ""))), where)
