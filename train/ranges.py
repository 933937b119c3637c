"""What a value may be, stated beside the field of a dataclass and checked for all fields at once.

lr: float = number(1e-5, above=0)
freeze: list[str] = names([], "vision", "merger", "language")
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol


class Rule(Protocol):
    def fault(self, value: Any) -> str | None:
        """What is wrong with a value, to be read after `key=value`; None if nothing is."""


@dataclass(frozen=True)
class Numbers:
    """An interval; `above` and `below` leave their end out."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def fault(self, value: float) -> str | None:
        ends = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        held = [
            math.isfinite(value),
            self.least is None or value >= self.least,
            self.above is None or value > self.above,
            self.most is None or value <= self.most,
            self.below is None or value < self.below,
        ]
        if all(held):
            return None
        return "must be " + (
            " and ".join(f"{word} {end:g}" for word, end in ends.items() if end is not None) or "finite"
        )


@dataclass(frozen=True)
class Names:
    """Some words, and where a `pattern` is given what matches it."""

    allowed: tuple[str, ...]
    pattern: str | None = None

    def fault(self, value: str) -> str | None:
        if value in self.allowed or (self.pattern is not None and re.fullmatch(self.pattern, value)):
            return None
        return f"is unknown: use one of {', '.join(self.allowed)}"


@dataclass(frozen=True)
class Expression:
    """A regular expression."""

    def fault(self, value: str) -> str | None:
        try:
            re.compile(value)
        except re.error as error:
            return f"is no regular expression ({error})"
        return None


def number(default: Any, *, fewest: int = 0, unique: bool = False, **ends: float) -> Any:
    """A field that holds a number within Numbers(**ends), or a list of at least `fewest`, or as many as `default`."""
    return ruled(default, Numbers(**ends), fewest, unique)


def pruning_rates(default: list[float]) -> Any:
    """A field that holds pruning rates."""
    return number(default, least=0, below=1, fewest=1, unique=True)


def names(default: Any, *allowed: str, pattern: str | None = None) -> Any:
    """A field that holds one of the words `allowed`, or several."""
    return ruled(default, Names(allowed, pattern))


def ruled(default: Any, rule: Rule, fewest: int = 0, unique: bool = False) -> Any:
    """A field whose value, or each of whose items, must follow `rule`; None is always allowed."""
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"rule": rule, "fewest": fewest, "unique": unique})
    length = len(default) if isinstance(default, tuple) else None
    return field(default=default, metadata={"rule": rule, "length": length})


def check_values(node: Any, prefix: str = "") -> None:
    """Raise ValueError for a value of the dataclass `node`, or of one within it, that breaks its field's rule."""
    for this in fields(node):
        key, value = prefix + this.name, getattr(node, this.name)
        if is_dataclass(value):
            check_values(value, f"{key}.")
        elif value != this.default and (fault := _fault(key, value, this.metadata)):
            raise ValueError(fault)


def _fault(key: str, value: Any, rules: Mapping[str, Any]) -> str | None:
    items = list(value) if isinstance(value, list | tuple) else [value]
    if len(items) < rules.get("fewest", 0):
        return f"{key}=[] must hold at least {rules['fewest']}"
    if len(items) != (rules.get("length") or len(items)):
        return f"{key}={items} must hold {rules['length']} values"
    if rules.get("unique") and (twice := [item for item in items if items.count(item) > 1]):
        return f"{key}={items} holds {twice[0]} twice: give each value once"
    for item in items:
        if isinstance(item, str) and not item.strip():
            return f"{key}= is empty: give a value, or null for none"
        if item is not None and "rule" in rules and (fault := rules["rule"].fault(item)):
            return f"{key}={item} {fault}"
    return None
