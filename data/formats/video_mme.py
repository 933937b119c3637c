"""Video-MME as it comes from the Hub: videomme/test-*.parquet, and videos in data/ or in videos_chunked_*.zip.

{"videoID": "fFjv93ACGo8", "question_id": "001-1", "duration": "short", "task_type": "Counting Problem",
 "question": "How many ...?", "options": ["A. 1.", "B. 2.", "C. 3.", "D. 4."], "answer": "C"}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from data.formats.benchmark import choice, place_of, video
from data.formats.conversation import finished, text_of
from data.formats.roots import Root
from data.types import Sample

LETTER = re.compile(r"^[A-Z]\.\s*")


def sample(row: Mapping[str, Any], root: Root, where: str) -> Sample:
    """One row as a Sample, its kind the task's type. RowError, naming `where`, if it cannot be used."""
    name = text_of(row.get("videoID"), "videoID", where)
    options = [LETTER.sub("", text_of(each, "an option", where)) for each in row.get("options") or []]
    right = place_of(text_of(row.get("answer"), "answer", where), options, where)
    names = [f"{folder}{name}{suffix}" for folder in ("data/", "videos/", "") for suffix in (".mp4", ".MP4", ".mkv")]
    turns = choice(video(root, names, where), text_of(row.get("question"), "question", where), options, right)
    return finished(Sample(str(row.get("question_id", where)), turns, kind=str(row.get("task_type", ""))), where)
