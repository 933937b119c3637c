"""One file per idea of which video tokens survive, and the table that finds a method by its name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from evs.methods.base import Method
from evs.methods.baselines import EvenFrames, RandomTokens
from evs.methods.evs import FrameDelta

METHODS: dict[str, Any] = {each.name: each for each in (FrameDelta, RandomTokens, EvenFrames)}

__all__ = ["METHODS", "Method", "method_named"]


def method_named(name: str, dtype: str | None = None) -> Method:
    """The method that evs.json calls `name`, scoring in `dtype` if it has one. ValueError for an unknown name."""
    if name not in METHODS:
        raise ValueError(f"pruning method {name!r} is unknown: use one of {', '.join(METHODS)}")
    scores = "dtype" in {each.name for each in fields(METHODS[name])}
    return METHODS[name](dtype) if scores else METHODS[name]()
