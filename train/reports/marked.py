"""Parts of a document that commands write, each between two marks of its own."""

from __future__ import annotations

from pathlib import Path


def check(page: Path, name: str) -> None:
    """ValueError for a page without the marks of `name`."""
    begin, end = _marks(name)
    if not (page.is_file() and begin in page.read_text()):
        raise ValueError(f"page={page} has no line {begin!r}: add it and {end!r} where the table belongs")


def put(page: Path, name: str, text: str) -> None:
    """Replaces what stands between the marks of `name`."""
    begin, end = _marks(name)
    before, _, rest = page.read_text().partition(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
