"""The LLaVA / Qwen conversation format.

    {"id": "7", "video": "a.mp4" | ["a.mp4", "b.mp4"], "image": "c.png" | [...],
     "conversations": [{"from": "human", "value": "<video>\\nWhat moves?"}, {"from": "gpt", "value": "A dog."}]}

"videos" and "images" are read too. A video may be {"video": path, "video_start": 1.5, "video_end": 9} (seconds), and
"video_start" / "video_end" of the row hold for all its videos. In rows with videos and no images `<image>` marks a
video, as in LLaVA-Video-178K.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.formats.conversation import Media, role, sample_of, text_of, turns_of
from data.formats.keys import is_learned
from data.formats.roots import Root
from data.types import Sample, Turn

OWN = ("from", "value")  # keys of a turn
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def sample(row: Mapping[str, Any], root: Root, where: str) -> Sample:
    """One row as a Sample. RowError, naming `where`, if it cannot be used."""
    media = Media(row, root, where)
    turns = []
    for number, turn in enumerate(turns_of(row, "conversations", where), 1):
        name = role(turn.get("from"), ROLES, where)
        learned = is_learned(turn, name, OWN, f"{where}: turn {number}")
        text = text_of(turn.get("value"), "a turn's value", where)
        if name == "user" and media.listed["video"] and not media.listed["image"]:
            text = text.replace("<image>", "<video>")
        turns.append(Turn(name, media.split(text) if name == "user" else (text,), learned))
    media.check_all_taken()
    return sample_of(row, turns, where)
