"""Rate distributions and pruning methods by the names that configurations give them.

The classes are looked up in two tables and never imported by name, since a configuration or a manifest may come from
somebody else's run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from evs import methods, rates
from evs.methods import Method
from train.removed import replacement

CLASSES: dict[str, dict[str, Any]] = {
    "rate": {
        each.__name__: each
        for each in (
            *(rates.Constant, rates.Uniform, rates.Choice, rates.Beta, rates.FrameBeta, rates.Mixture),
            rates.Curriculum,
        )
    },
    "method": {each.__name__: each for each in methods.METHODS.values()},
}


def class_name(key: str, node: Any) -> str:
    """The class that `_target_` names in a node of the group `key` ("rate" or "method"). ValueError for any other."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    package, _, name = str(target).rpartition(".")
    known = CLASSES[key]
    if name in known and package in ("evs", known[name].__module__):
        return name
    unknown = f"_target_={target} is unknown; use one of {', '.join(f'evs.{each}' for each in known)}"
    raise ValueError(f"{key}={node}: {replacement(str(node)) or unknown}")


def build(key: str, node: Any) -> Any:
    """The rate distribution or pruning method that a node describes. ValueError, naming `key`, if it describes none."""
    kind = CLASSES[key][class_name(key, node)]
    try:
        return kind(**{name: _argument(key, value) for name, value in node.items() if name != "_target_"})
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{key}={node}: {error}") from error


def build_methods(node: Mapping[str, Any]) -> tuple[Method, ...]:
    """The pruning methods of a `method` node: those under `methods`, or the one that it describes itself."""
    return tuple(build("method", each) for each in method_nodes(node).values())


def method_nodes(node: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes under `methods` by name, or the node itself. ValueError if there is none."""
    several = node.get("methods", {"": node})
    if not several or not isinstance(several, dict):
        raise ValueError(
            f"method.methods={several} names no method: give names and methods, as configs/method/drawn.yaml"
        )
    return cast("dict[str, Any]", several)


def _argument(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(key, value)
    return [_argument(key, each) for each in value] if isinstance(value, list | tuple) else value
