"""`--help`: what a command does and what its keys mean, read from the dataclass that declares them.

A key's explanation is the comment beside its field, or the lines above it; a key that has none there is explained where
the library declares it (evs.json, frames, the run's configuration).
"""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, cast, get_type_hints

from data.media.frames import FramePolicy
from evs.policy import Policy
from train.ranges import Names, Numbers

WIDTH = 110
EXAMPLES = {"model": "runs/x-checkpoint", "data": "held_out.jsonl", "run": "runs/x", "out": "out", "video": "clip.mp4"}


def page(description: str, schema: Any, shared: Sequence[Any] = ()) -> str:
    """The whole of a script's `--help`."""
    keys = "\n".join(_key(each, schema, f"{each.name}", shared) for each in fields(schema))
    return f"{textwrap.dedent(description).strip()}\n\nKeys, each given as key=value:\n\n{keys}"


def lines_of(schema: Any, prefix: str = "", only: Sequence[str] = ()) -> Iterator[str]:
    """The keys of a configuration made of dataclasses, those within it too; `only` some of the dotted names."""
    for each in fields(schema):
        kind, name = _hints(schema)[each.name], prefix + each.name
        if is_dataclass(kind):
            yield from lines_of(cast(Any, kind), f"{name}.", only)
        elif not only or name in only:
            yield _key(each, schema, name, ())


def _key(field: Field[Any], schema: Any, name: str, shared: Sequence[Any]) -> str:
    """`key=example`, then its type, default, bounds and explanation."""
    kind = str(field.type).replace(" | None", "").replace("Any", "value")
    facts = "; ".join(part for part in (kind, _bounds(field), _default(field)) if part)
    about = explanation(schema, field.name, (*shared, Policy, FramePolicy))
    body = textwrap.fill(about, WIDTH, initial_indent="      ", subsequent_indent="      ") if about else ""
    return "\n".join(part for part in (f"  {name}={_example(field, kind)}   ({facts})", body) if part)


def explanation(schema: Any, name: str, shared: Sequence[Any] = (Policy, FramePolicy)) -> str:
    """The comment of a field, or of the field of the same name in one of the `shared` dataclasses."""
    return next((text for each in (schema, *shared) if (text := _comments(each).get(name))), "")


@cache
def _comments(schema: Any) -> dict[str, str]:
    """By field: what the source says on its line, else in the comment lines right above it."""
    source = textwrap.dedent(inspect.getsource(schema))
    words = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {token.start[0]: token for token in words if token.type == tokenize.COMMENT}
    found = {}
    (declared,) = ast.parse(source).body
    for node in cast(ast.ClassDef, declared).body:
        if not isinstance(node, ast.AnnAssign):
            continue
        above: list[tokenize.TokenInfo] = []
        own = [said[line] for line in range(node.lineno, (node.end_lineno or node.lineno) + 1) if line in said]
        line = node.lineno - 1
        while line in said and not said[line].line[: said[line].start[1]].strip():
            above.insert(0, said[line])
            line -= 1
        found[cast(ast.Name, node.target).id] = " ".join(each.string.lstrip("# ") for each in above + own)
    return found


@cache
def _hints(schema: Any) -> dict[str, Any]:
    return get_type_hints(schema)


def _default(field: Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING or value == "???":
        return "required"
    return f"default {_shown(value)}"


def _bounds(field: Field[Any]) -> str:
    """What its rule allows, in words."""
    rule = field.metadata.get("rule")
    if isinstance(rule, Names):
        return "one of " + ", ".join(rule.allowed)
    if isinstance(rule, Numbers):
        ends = {"at least": rule.least, "above": rule.above, "at most": rule.most, "below": rule.below}
        return " and ".join(f"{word} {end:g}" for word, end in ends.items() if end is not None)
    return ""


def _example(field: Field[Any], kind: str) -> str:
    """A value that may stand there: another than the default where that says little."""
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    rule = field.metadata.get("rule")
    if isinstance(value, bool):
        return _shown(not value)
    if isinstance(rule, Names):
        return f"[{rule.allowed[0]}]" if kind.startswith("list") else rule.allowed[-1]
    if value in (MISSING, None, "???", "", []) or is_dataclass(value):
        numbers = {"int": "1000", "float": "0.5", "list[float]": "[0,0.5]", "list[str]": "[A,B]"}
        return EXAMPLES.get(field.name) or numbers.get(kind) or field.name.upper()
    return _shown(value)


def _shown(value: Any) -> str:
    """As it is written on the command line."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_shown, value))}]"
    if is_dataclass(value):
        return f"its own keys, {', '.join(each.name for each in fields(value))}"
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return "{}" if isinstance(value, dict) else str(value)
