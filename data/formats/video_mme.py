"""Video-MME with the files of the Hub: videomme/test-*.parquet, and videos in data/ or in videos_chunked_*.zip.

{"videoID": "fFjv93ACGo8", "question_id": "001-1", "duration": "short", "task_type": "Counting Problem",
 "question": "How many ...?", "options": ["A. 1.", "B. 2.", "C. 3.", "D. 4."], "answer": "C"}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from data.formats.benchmark import choice, option_index, video
from data.formats.conversation import finished, text_of
from data.formats.roots import Root
from data.types import Sample

LETTER = re.compile(r"^[A-Z]\.\s*")


def sample(row: Mapping[str, Any], root: Root, where: str) -> Sample:
    """One row as a Sample, its kind the task's type. RowError, naming `where`, if it cannot be used."""
    name = text_of(row.get("videoID"), "videoID", where)
    options = [LETTER.sub("", text_of(option, "an option", where)) for option in row.get("options") or []]
    correct = option_index(text_of(row.get("answer"), "answer", where), options, where)
    names = [f"{folder}{name}{suffix}" for folder in ("data/", "videos/", "") for suffix in (".mp4", ".MP4", ".mkv")]
    turns = choice(video(root, names, where), text_of(row.get("question"), "question", where), options, correct)
    return finished(Sample(str(row.get("question_id", where)), turns, kind=str(row.get("task_type", ""))), where)
