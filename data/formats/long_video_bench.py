"""LongVideoBench as it comes from the Hub: validation-*.parquet or lvb_val.json, and videos in videos/. No subtitles.

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
    options = [str(each) for each in listed if each not in (None, "N/A")]
    right = row.get("correct_choice")
    if not isinstance(right, int) or not 0 <= right < len(options):
        raise RowError(f"{where}: correct_choice={right!r} is none of {len(options)} options; use the validation split")
    path = text_of(row.get("video_path"), "video_path", where)
    turns = choice(
        video(root, [f"videos/{path}", path], where), text_of(row.get("question"), "question", where), options, right
    )
    return finished(Sample(str(row.get("id", where)), turns, kind=str(row.get("question_category", ""))), where)
