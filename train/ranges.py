"""Allowed values, declared next to the field of a dataclass and checked for all fields at once.

lr: float = number(1e-5, above=0)
freeze: list[str] = names([], "vision", "merger", "language")
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

BOUNDS = {
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


NEVER = r"(?!)"  # a pattern that matches nothing


@dataclass(frozen=True)
class Rule:
    """Which values are allowed, and how to say so."""

    words: str  # the allowed values, for the help; empty if they have no short description
    allows: Callable[[Any], bool]
    message: str  # about a value that is not allowed, to be read after `key=value`
    names: tuple[str, ...] = ()  # the allowed words, if the values are words


def number(default: Any, *, fewest: int = 0, unique: bool = False, **bounds: float) -> Any:
    """A field for a finite number within BOUNDS, a list of at least `fewest`, or a tuple as long as `default`."""
    words = " and ".join(f"{BOUNDS[name][0]} {bound:g}" for name, bound in bounds.items())

    def allows(value: float) -> bool:
        return math.isfinite(value) and all(BOUNDS[name][1](value, bound) for name, bound in bounds.items())

    return ruled(default, Rule(words, allows, f"must be {words or 'finite'}"), fewest, unique)


def pruning_rates(default: list[float]) -> Any:
    """A field for a list of pruning rates."""
    return number(default, least=0, below=1, fewest=1, unique=True)


def names(default: Any, *allowed: str, pattern: str = NEVER, fewest: int = 0) -> Any:
    """A field for one of the words `allowed` or a match of `pattern`, or for a list of at least `fewest` of them."""
    words = f"one of {', '.join(allowed)}"

    def allows(value: str) -> bool:
        return value in allowed or re.fullmatch(pattern, value) is not None

    return ruled(default, Rule(words, allows, f"is unknown: use {words}", allowed), fewest)


def expression(default: str | None) -> Any:
    """A field for a regular expression."""
    return ruled(default, Rule("", _compiles, "is not a regular expression"))


def device(default: str) -> Any:
    """A field for a device of this machine, in PyTorch's words."""
    return ruled(
        default, Rule("", _has_device, "is not a device of this machine: use cpu, or cuda where a GPU is visible")
    )


def _has_device(value: str) -> bool:
    import torch  # slow, and no configuration of a run needs it

    try:
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError, NotImplementedError):
        return False
    return value != "meta"


def _compiles(value: str) -> bool:
    try:
        re.compile(value)
    except re.error:
        return False
    return True


def ruled(default: Any, rule: Rule, fewest: int = 0, unique: bool = False) -> Any:
    """A field whose value, or each of whose items, must follow `rule`; None is always allowed."""
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"rule": rule, "fewest": fewest, "unique": unique})
    length = len(default) if isinstance(default, tuple) else None
    return field(default=default, metadata={"rule": rule, "length": length})


def check_values(node: Any, prefix: str = "") -> None:
    """Raise ValueError for a value of the dataclass `node`, or of one within it, that breaks its field's rule."""
    for entry in fields(node):
        key, value = prefix + entry.name, getattr(node, entry.name)
        if is_dataclass(value):
            check_values(value, f"{key}.")
        elif value != entry.default and (mistake := _mistake(key, value, **entry.metadata)):
            raise ValueError(mistake)


def _mistake(
    key: str, value: Any, *, rule: Rule | None = None, fewest: int = 0, unique: bool = False, length: int | None = None
) -> str | None:
    items = list(value) if isinstance(value, list | tuple) else [value]
    if len(items) < fewest:
        return f"{key}=[] must hold at least {fewest}"
    if len(items) != (length or len(items)):
        return f"{key}={items} must hold {length} values"
    if unique and (twice := [item for item in items if items.count(item) > 1]):
        return f"{key}={items} holds {twice[0]} twice: give each value once"
    for item in items:
        if isinstance(item, str) and not item.strip():
            return f"{key}= is empty: give a value, or null for none"
        if item is not None and rule is not None and not rule.allows(item):
            return f"{key}={item} {rule.message}"
    return None
