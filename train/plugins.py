"""Builds the rate distributions and pruning methods that a configuration names.

The classes are looked up in two tables and never imported by name, because a configuration or a manifest may come from
an untrusted run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from evs import methods, rates
from evs.methods import Method
from evs.rates import RateDistribution
from train.config import Config
from train.removed import replacement
from train.views import StepMethods, StepRates

CLASSES: dict[str, dict[str, Any]] = {
    "rate": {
        distribution.__name__: distribution
        for distribution in (
            *(rates.Constant, rates.Uniform, rates.Choice, rates.Beta, rates.FrameBeta, rates.Mixture),
            rates.Curriculum,
        )
    },
    "method": {method.__name__: method for method in methods.METHODS.values()},
}


def class_name(key: str, node: Any) -> str:
    """The name of the class that a node's `_target_` selects; `key` is "rate" or "method". ValueError if unknown."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    package, _, name = str(target).rpartition(".")
    classes = CLASSES[key]
    if name in classes and package in ("evs", classes[name].__module__):
        return name
    unknown = f"_target_={target} is unknown; use one of {', '.join(f'evs.{name}' for name in classes)}"
    raise ValueError(f"{key}={node}: {replacement(str(node)) or unknown}")


def build(key: str, node: Any) -> Any:
    """The rate distribution or pruning method of a node. ValueError, naming `key`, if its arguments are invalid."""
    kind = CLASSES[key][class_name(key, node)]
    try:
        return kind(**{name: _argument(key, value) for name, value in node.items() if name != "_target_"})
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{key}={node}: {error}") from error


def build_methods(node: Mapping[str, Any]) -> tuple[Method, ...]:
    """The pruning methods of a `method` node: those under `methods`, or the one that it describes itself."""
    return tuple(build("method", method) for method in method_nodes(node).values())


def method_nodes(node: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes under `methods` by name, or the node itself. ValueError if there is none."""
    nodes = node.get("methods", {"": node})
    if not nodes or not isinstance(nodes, dict):
        raise ValueError(
            f"method.methods={nodes} does not map names to methods: write it like configs/method/drawn.yaml"
        )
    return cast("dict[str, Any]", nodes)


def _argument(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(key, value)
    return [_argument(key, item) for item in value] if isinstance(value, list | tuple) else value


def build_rates(node: Mapping[str, Any]) -> RateDistribution:
    """The rate distribution of a `rate` node."""
    return build("rate", node)


def build_step_methods(config: Config) -> StepMethods:
    """The pruning methods of the run's steps. Raise ValueError if they cannot be drawn from."""
    methods, views = build_methods(config.method), config.train.views
    if len(methods) > 1 and views > 1:
        raise ValueError(
            f"train.views={views} prunes all views by one method: remove method.methods, or set train.views=1"
        )
    return StepMethods(methods, config.seed)


def build_step_rates(config: Config, world: int) -> StepRates:
    """The rates of a run's steps on `world` ranks.

    Raise ValueError if a view that teaches could be pruned more than its students.
    """
    train, distribution = config.train, build_rates(config.rate)
    rates = StepRates(
        distribution,
        world * train.accumulation,
        config.seed,
        train.rate_levels,
        views=train.views,
        anchor=train.anchor_rate,
        per_video=train.rate_per_video,
    )
    lowest, anchor, distill = rates.lowest()[0], train.anchor_rate, train.distill
    if distill.weight and distill.teacher == "view" and anchor is not None and lowest < anchor:
        raise ValueError(
            f"train.anchor_rate={anchor:g} is above {lowest:g}, the lowest rate of the other views, but a teacher must "
            f"not be pruned more than its students: lower it, or raise the lowest rate of {config.rate}"
        )
    return rates
