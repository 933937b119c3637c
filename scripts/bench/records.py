"""JSON files of results, and a digest of the code that results depend on."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from scripts.bench.timing import ROOT


@lru_cache
def fingerprint(*paths: str) -> str:
    """A digest of the Python and YAML files at or below `paths` of the repository."""
    digest = hashlib.sha256()
    for path in sorted({file for name in paths for file in [ROOT / name, *(ROOT / name).rglob("*")]}):
        if path.suffix in (".py", ".yaml") and path.is_file():
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """Replace a file atomically."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> Any:
    """The value of a JSON file; None if the file is missing or invalid."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of a job, which has a `status`; None without a valid record."""
    record = read_json(path)
    return record if isinstance(record, dict) and "status" in record else None


def is_done(record: dict[str, Any] | None) -> bool:
    return record is not None and record["status"] == "done"
