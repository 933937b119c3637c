"""Configuration keys and values of earlier versions, and what to write instead."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import OmegaConf

REMOVED = {  # (pattern in an error message or configuration, advice)
    r"\bscorer\b": "this key is now method=: see configs/method",
    r"\btrain\.tower_cost\b": "train.tower_cost was removed: remove the key, the cost model counts operations",
    r"rate/adaptive|\bevs(\.rates)?\.Adaptive": "rate=adaptive was removed: use rate=uniform",
}

KEYS = ("train.tower_cost",)  # keys that the configuration of an earlier run may hold


def replacement(text: str) -> str | None:
    """What to write instead of a removed key or value that `text` names; None if it names none."""
    return next((advice for pattern, advice in REMOVED.items() if re.search(pattern, text)), None)


def without_removed(saved: Any) -> Any:
    """The configuration that an earlier run has saved, without the keys that no longer exist."""
    for key in KEYS:
        group, _, name = key.rpartition(".")
        OmegaConf.select(saved, group, default={}).pop(name, None)
    return saved
