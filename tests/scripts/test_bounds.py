"""Every number that a command takes has bounds, so that a wrong one is an error before anything is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from train.config import Config

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[2] / "scripts").glob("[a-z]*.py"))
SCHEMAS = [schema for name in SCRIPTS if (schema := getattr(import_module(f"scripts.{name}"), "Options", None))]


def numbers(schema: Any) -> Iterator[Field[Any]]:
    """The fields of a dataclass that hold numbers, those of dataclasses within it too."""
    for field in fields(schema):
        kind = get_type_hints(schema)[field.name]
        if is_dataclass(kind):
            yield from numbers(kind)
        elif {"int", "float"} & set(str(field.type).replace("[", " ").replace("]", " ").split()):
            yield field


@pytest.mark.parametrize("schema", [Config, *SCHEMAS], ids=lambda schema: schema.__module__)
def test_every_number_has_bounds(schema):
    assert [field.name for field in numbers(schema) if "rule" not in field.metadata] == []
