"""Pruning methods, which decide which video tokens survive, and the table that finds one by its name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from evs.methods.base import Method
from evs.methods.baselines import DirichletFrames, EvenFrames, RandomTokens
from evs.methods.evs import FrameDelta
from evs.methods.pixels import PixelDelta
from evs.methods.vidcom2 import VidCom2

METHODS: dict[str, Any] = {
    method.name: method for method in (FrameDelta, VidCom2, PixelDelta, RandomTokens, EvenFrames, DirichletFrames)
}

__all__ = ["METHODS", "Method", "method_named"]


def method_named(name: str, dtype: str | None = None, prune_at: str | int = "merger") -> Method:
    """The method of this name, with the settings of evs.json that it has.

    Raises ValueError for an unknown name, and for a `prune_at` that the method does not support.
    """
    if name not in METHODS:
        raise ValueError(f"pruning method {name!r} is unknown: use one of {', '.join(METHODS)}")
    settings = {field.name for field in fields(METHODS[name])}
    if prune_at != "merger" and "prune_at" not in settings:
        raise ValueError(f"method.prune_at={prune_at} is not for {name}: use method=pixel_delta")
    options = {"dtype": dtype, "prune_at": prune_at}
    return METHODS[name](**{key: value for key, value in options.items() if key in settings})
