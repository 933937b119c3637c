"""Ranges are declared with the fields of a dataclass and checked at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from evs.positions import SCHEMES as LIBRARY_SCHEMES
from train.config import SCHEMES, Config
from train.ranges import check_values, device, names, number, pruning_rates


@dataclass
class Inner:
    width: int | None = number(None, least=1)


@dataclass
class Some:
    lr: float = number(1.0, above=0)
    pair: tuple[float, float] = number((0.1, 0.2), least=0, below=1)
    rates: list[float] = pruning_rates([0.5])
    towers: list[str] = names([], "a", "b")
    text: str = "x"
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.0}, "run.lr=0.0 must be above 0"),
        ({"lr": float("nan")}, "run.lr=nan must be above 0"),
        ({"lr": float("inf")}, "run.lr=inf must be above 0"),
        ({"pair": [0.5, 1.0]}, "run.pair=1.0 must be at least 0 and below 1"),
        ({"pair": [0.5]}, "run.pair=[0.5] must hold 2 values"),
        ({"rates": []}, "run.rates=[] must hold at least 1"),
        ({"towers": ["a", "c"]}, "run.towers=c is unknown: use one of a, b"),
        ({"text": " "}, "run.text= is empty: give a value, or null for none"),
        ({"inner": Inner(0)}, "run.inner.width=0 must be at least 1"),
    ],
)
def test_a_value_outside_its_range_is_named_with_it(changed, message):
    with pytest.raises(ValueError) as error:
        check_values(Some(**changed), "run.")
    assert str(error.value) == message


def test_values_inside_their_ranges_pass():
    check_values(Some(lr=1e-9, pair=(0.0, 0.5), rates=[0.0, 0.99], towers=["b"], inner=Inner(1)))


def unruled(schema: Any, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(schema)
    for this in fields(schema):
        hint = hints[this.name]
        if is_dataclass(hint):
            yield from unruled(hint, f"{prefix}{this.name}.")
        elif {int, float} & {hint, *get_args(hint)} and "rule" not in this.metadata:
            yield prefix + this.name


def test_every_number_of_the_configuration_has_a_range():
    assert not list(unruled(Config))


def test_the_schemes_offered_are_the_library_s():
    assert SCHEMES == LIBRARY_SCHEMES


@dataclass
class Machine:
    device: str = device("cpu")
    servers: list[str] = names(["plugin"], "plugin", "stock", fewest=1)


def test_a_device_that_this_machine_lacks_is_named():
    check_values(Machine(device="cpu:0"))
    for missing in ("tpu", "meta", "cuda:99"):
        with pytest.raises(ValueError, match=f"device={missing} is not a device of this machine: use cpu"):
            check_values(Machine(device=missing))


def test_a_list_of_names_may_need_an_item():
    with pytest.raises(ValueError, match=r"servers=\[\] must hold at least 1"):
        check_values(Machine(servers=[]))
