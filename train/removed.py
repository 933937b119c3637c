"""Configuration keys and values of earlier versions, and what to write instead."""

from __future__ import annotations

import re

REMOVED = {  # a pattern in an error message or a configuration, and what to say about it
    r"\bscorer\b": "this key is now method=: see configs/method",
    r"rate/adaptive|\bevs(\.rates)?\.Adaptive": "rate=adaptive was removed: use rate=uniform",
}


def replacement(text: str) -> str | None:
    """What to write instead of a removed key or value that `text` names; None if it names none."""
    return next((advice for pattern, advice in REMOVED.items() if re.search(pattern, text)), None)
