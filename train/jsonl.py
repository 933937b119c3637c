"""JSONL files that stay valid if the run is killed: only complete lines, and each step once."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from train.atomic_write import write_atomically
from train.faults.full_disk import writing


def append_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append lines in one write. Raise ValueError naming the file if they do not fit; the file is then unchanged."""
    if not rows:
        return
    with writing(path), path.open("ab", buffering=0) as file:
        before = file.tell()
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        try:
            if file.write(text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(before)
            raise


def append_new_lines(path: Path, rows: list[dict[str, Any]]) -> int:
    """Append the rows that the file does not hold at any step. Returns their number."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    existing = [_without_step(row) for line in lines if (row := _row(line)) is not None]
    new = [row for row in rows if _without_step(row) not in existing] if existing else rows
    append_lines(path, new)
    return len(new)


def _without_step(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "step"}


def cut_back(path: Path, step: int) -> None:
    """Remove incomplete lines and those after `step`, which a run resumed at `step` writes again."""
    if not path.exists():
        return
    with path.open() as file:
        kept = [line for line in file if (row := _row(line)) is not None and row.get("step", 0) <= step]
    write_atomically(path, "".join(kept))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none if it does not exist.

    An incomplete last line is skipped and reported on stderr. Raise ValueError, naming file and line, for any other
    line that is not a JSON object.
    """
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                rows.append(_object(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise ValueError(f"{path}:{number}: not a JSON object ({error}); correct or remove the line") from None
            print(f"{path}:{number}: skipped an incomplete line", file=sys.stderr)
    return rows


def _object(line: bytes) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(type(row).__name__)
    return row


def _row(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None


def as_json(values: dict[str, float]) -> dict[str, Any]:
    """The values with null for NaN and infinity, which JSON lacks, and the names of those under `nonfinite`."""
    nonfinite = [name for name, value in values.items() if not math.isfinite(value)]
    return values | dict.fromkeys(nonfinite) | ({"nonfinite": nonfinite} if nonfinite else {})
