"""Converts a row to a Sample, by the format that its keys indicate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from data.formats.columns import Columns
from data.formats.roots import Root
from data.types import RowError, Sample

LAYOUTS: dict[str, list[tuple[str, ...]]] = {  # "auto" takes the first format of which a row has a key of every group
    "llava": [("conversations",)],
    "openai": [("messages",)],
    "video_chat2": [("QA",)],
    "prompt_completion": [("prompt",), ("completion",)],
    "video_r1": [("problem",), ("solution",)],
    "instruction": [("instruction", "query", "input"), ("output", "response")],
}
BENCHMARKS = ("video_mme", "mv_bench", "temp_compass", "long_video_bench")


@dataclass(frozen=True)
class Format:
    """Name of a module of data.formats, or "auto" to decide by each row's keys, and the mapping of column names."""

    name: str = "auto"
    columns: Columns = field(default_factory=Columns)

    def check(self) -> None:
        """Raise ValueError for an unknown format."""
        if self.name != "auto":
            _converter(self.name)

    def sample(self, row: Mapping[str, Any], root: Root, where: str) -> Sample:
        """Convert a row. Raises RowError, naming `where`, if it cannot be used."""
        if self.columns.named:
            row = self.columns.rename(row, where)
        name = self.name if self.name != "auto" else _format_of(row, where)
        return _converter(name)(row, root, where)


@cache
def _converter(name: str) -> Callable[[Mapping[str, Any], Root, str], Sample]:
    """The function `sample` of data.formats.<name>. Raises ValueError if there is none."""
    spec = find_spec(f"data.formats.{name}")
    converter = getattr(import_module(f"data.formats.{name}"), "sample", None) if spec else None
    if converter is None:
        names = ("auto", *LAYOUTS, *BENCHMARKS)
        raise ValueError(f"data format {name!r} is unknown; use one of {', '.join(names)}")
    return converter


def _format_of(row: Mapping[str, Any], where: str) -> str:
    if row.get("conversations") and row.get("messages"):
        raise RowError(f"{where}: has both conversations and messages; keep one, or set data.format to llava or openai")
    for name, groups in LAYOUTS.items():
        if all(any(row.get(key) is not None for key in group) for group in groups):
            return name
    layouts = "; ".join(" and ".join("/".join(group) for group in groups) for groups in LAYOUTS.values())
    raise RowError(
        f"{where}: has keys {sorted(row)} but not those of a known layout: {layouts}; convert it or set data.columns"
    )
