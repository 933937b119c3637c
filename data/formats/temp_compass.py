"""TempCompass with the files of the Hub: multi-choice, yes_no and caption_matching, and videos in videos/ or a zip.

    {"video_id": "1034545172", "dim": "direction", "question": "...?\\nA. left\\nB. right", "answer": "A. left"}
    {"video_id": "1034545172", "dim": "action", "question": "Is he running?", "answer": "yes"}
    {"video_id": "1034545172", "dim": "speed", "question": "Which ...?\\nCaption A: ...", "answer": "Caption A: ..."}

Captioning needs a judge model; use lmms-eval for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.encoding.labels import OPTION
from data.formats.benchmark import ASK, question_turns, video
from data.formats.conversation import finished, text_of
from data.formats.roots import Root
from data.types import RowError, Sample


def sample(row: Mapping[str, Any], root: Root, where: str) -> Sample:
    """One row as a Sample, its kind the dimension. RowError, naming `where`, if it cannot be used."""
    if row.get("answer") is None or row.get("mc_question") is not None:
        raise RowError(f"{where}: captioning needs a judge model; use multi-choice, yes_no or caption_matching")
    question, answer = (text_of(row.get(key), key, where) for key in ("question", "answer"))
    name = text_of(row.get("video_id"), "video_id", where)
    ref = video(root, [f"videos/{name}.mp4", f"{name}.mp4"], where)
    id, kind = str(row.get("id", where)), str(row.get("dim", ""))
    if OPTION.search(question):
        return finished(Sample(id, question_turns(ref, f"{question}\n{ASK}", answer.strip()[0]), kind), where)
    closed = answer.strip().lower() in ("yes", "no")
    ask = "Please answer yes or no:" if closed else "Please directly give the best option:"
    label, colon, caption = answer.partition(":")
    accepted = (label, caption.strip()) if colon else ()
    turns = question_turns(ref, f"{question}\n{ask}", answer)
    return finished(Sample(id, turns, kind, metric="contains", answers=accepted), where)
