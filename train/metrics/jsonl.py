"""Files of JSON lines that survive whatever ends the run: whole lines, each step once."""

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
    """Append the rows that the file does not hold yet at any step, and return their number."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    known = [_without_step(row) for line in lines if (row := _row(line)) is not None]
    new = [row for row in rows if _without_step(row) not in known] if known else rows
    append_lines(path, new)
    return len(new)


def _without_step(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "step"}


def cut_back(path: Path, step: int) -> None:
    """Keep the lines up to `step`, those that are whole: a run resumed there writes the others again."""
    if not path.exists():
        return
    with path.open() as file:
        kept = [line for line in file if (row := _row(line)) is not None and row.get("step", 0) <= step]
    write_atomically(path, "".join(kept))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none if it does not exist. A last line that was cut short is left out, and reported on
    stderr. ValueError, naming file and line, for any other line that is not a JSON object."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                rows.append(_object(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise ValueError(f"{path}:{number}: not a JSON object ({error}); correct or remove the line") from None
            print(f"{path}:{number}: left out, since the line was cut short", file=sys.stderr)
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
    """JSON has no NaN and no infinity: null in their place, and their names under `nonfinite`."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    return values | dict.fromkeys(bad) | ({"nonfinite": bad} if bad else {})
