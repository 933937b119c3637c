"""The text of `--help`, generated from the dataclass that declares a command's keys.

The explanation of a key is the comment on the line of its field or in the lines above it. A field without comment is
explained by the field of the same name in evs.policy.Policy, FramePolicy or the run's configuration.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, cast, get_type_hints

from data.media.frames import FramePolicy
from evs.policy import Policy

WIDTH = 110
EXAMPLES = {"model": "runs/x-checkpoint", "data": "held_out.jsonl", "run": "runs/x", "out": "out", "video": "clip.mp4"}


def page(description: str, schema: Any, shared: Sequence[Any] = ()) -> str:
    """The text of a script's `--help`. Dataclasses in `shared` explain fields that have no comment of their own."""
    keys = "\n".join(_key(field, schema, field.name, shared) for field in fields(schema))
    return f"{textwrap.dedent(description).strip()}\n\nKeys, written as key=value:\n\n{keys}"


def describe_keys(schema: Any, prefix: str = "", only: Sequence[str] = ()) -> Iterator[str]:
    """The descriptions of all keys of nested dataclasses, or of those whose dotted names are in `only`."""
    for field in fields(schema):
        kind, name = _hints(schema)[field.name], prefix + field.name
        if is_dataclass(kind):
            yield from describe_keys(cast(Any, kind), f"{name}.", only)
        elif not only or name in only:
            yield _key(field, schema, name, ())


def _key(field: Field[Any], schema: Any, name: str, shared: Sequence[Any]) -> str:
    """`key=example`, then its type, default, bounds and explanation."""
    kind = str(field.type).replace(" | None", "").replace("Any", "value")
    or_null = " or null" if str(field.type).endswith(" | None") else ""
    rule = field.metadata.get("rule")
    facts = "; ".join(part for part in (kind + or_null, rule.words if rule else "", _default(field)) if part)
    text = explanation(schema, field.name, (*shared, Policy, FramePolicy))
    body = textwrap.fill(text, WIDTH, initial_indent="      ", subsequent_indent="      ") if text else ""
    return "\n".join(part for part in (f"  {name}={_example(field, kind)}   ({facts})", body) if part)


def explanation(schema: Any, name: str, shared: Sequence[Any] = (Policy, FramePolicy)) -> str:
    """The comment of a field, or of the field of the same name in one of the `shared` dataclasses."""
    return next((text for declaring in (schema, *shared) if (text := _comments(declaring).get(name))), "")


@cache
def _comments(schema: Any) -> dict[str, str]:
    """The comments of every field by its name: those in the lines above it, then the one on its own line."""
    explanations: dict[str, str] = {}
    above: list[str] = []
    for line in textwrap.dedent(inspect.getsource(schema)).splitlines():
        if re.match(r"    (def |@)", line):  # the fields precede the methods
            break
        if comment := re.match(r" *# ?(.*)", line):
            above.append(comment[1])
            continue
        if declared := re.match(r"    (\w+): ", line):
            name, explanations[declared[1]] = declared[1], " ".join(above)
        if explanations and "#" in line:  # also in a later line of the declaration
            explanations[name] = f"{explanations[name]} {line.partition('#')[2].strip()}".strip()
        above = []
    return explanations


@cache
def _hints(schema: Any) -> dict[str, Any]:
    return get_type_hints(schema)


def _default(field: Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING or value == "???":
        return "required"
    return f"default {_shown(value)}"


def _example(field: Field[Any], kind: str) -> str:
    """An example value: the default, or another valid value if the default says little."""
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    rule = field.metadata.get("rule")
    if isinstance(value, bool):
        return _shown(not value)
    if rule is not None and rule.names:
        return f"[{rule.names[0]}]" if kind.startswith("list") else rule.names[-1]
    if value in (MISSING, None, "???", "", []) or is_dataclass(value):
        numbers = {"int": "1000", "float": "0.5", "list[float]": "[0,0.5]", "list[str]": "[A,B]"}
        return EXAMPLES.get(field.name) or numbers.get(kind) or field.name.upper()
    return _shown(value)


def _shown(value: Any) -> str:
    """The value as written on the command line."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_shown, value))}]"
    if is_dataclass(value):
        return f"its own keys, {', '.join(field.name for field in fields(value))}"
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return "{}" if isinstance(value, dict) else str(value)
