"""Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table whose cells may hold any text: `|` is escaped, and a line break becomes a space."""
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in (header, *rows)]
    return "\n".join([lines[0], "| --- " * len(header) + "|", *lines[1:]])


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split("\n"))
