"""Allowed values, declared next to the field of a dataclass and checked for all fields at once.

lr: float = number(1e-5, above=0)
freeze: list[str] = names([], "vision", "merger", "language")
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeAlias

BOUNDS = {
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


@dataclass(frozen=True)
class Numbers:
    """Finite numbers within bounds, by the names of BOUNDS.

    Of a rule, `words` are the allowed values for the help, and `mistake` is the rest of an error message that begins
    with `key=value`, or None.
    """

    bounds: Mapping[str, float]

    @property
    def words(self) -> str:
        return " and ".join(
            f"{text} {self.bounds[name]:g}" for name, (text, _) in BOUNDS.items() if name in self.bounds
        )

    def mistake(self, value: float) -> str | None:
        inside = all(BOUNDS[name][1](value, bound) for name, bound in self.bounds.items())
        return None if inside and math.isfinite(value) else f"must be {self.words or 'finite'}"


@dataclass(frozen=True)
class Names:
    """Some words, and with a `pattern` also what matches it."""

    allowed: tuple[str, ...]
    pattern: str | None = None

    @property
    def words(self) -> str:
        return f"one of {', '.join(self.allowed)}"

    def mistake(self, value: str) -> str | None:
        if value in self.allowed or (self.pattern is not None and re.fullmatch(self.pattern, value)):
            return None
        return f"is unknown: use {self.words}"


@dataclass(frozen=True)
class Expression:
    """A regular expression."""

    words: str = ""

    def mistake(self, value: str) -> str | None:
        try:
            re.compile(value)
        except re.error as error:
            return f"is not a regular expression ({error})"
        return None


Rule: TypeAlias = Numbers | Names | Expression


def number(default: Any, *, fewest: int = 0, unique: bool = False, **bounds: float) -> Any:
    """A field for a number within BOUNDS, for a list of at least `fewest`, or for a tuple as long as `default`."""
    return ruled(default, Numbers(bounds), fewest, unique)


def pruning_rates(default: list[float]) -> Any:
    """A field for a list of pruning rates."""
    return number(default, least=0, below=1, fewest=1, unique=True)


def names(default: Any, *allowed: str, pattern: str | None = None) -> Any:
    """A field for one of the words `allowed`, or for a list of them."""
    return ruled(default, Names(allowed, pattern))


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
    key: str, value: Any, rule: Rule | None = None, fewest: int = 0, unique: bool = False, length: int | None = None
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
        if item is not None and rule is not None and (mistake := rule.mistake(item)):
            return f"{key}={item} {mistake}"
    return None
