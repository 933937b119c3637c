"""What `data.train` may say, as the files and datasets that it names.

a.jsonl                                  one file: .json, .jsonl, .parquet or .tar (WebDataset)
"shards/*.tar"                           a glob
user/name or folder                      a Hugging Face dataset
[a.jsonl, b.parquet]                     one after the other, as one source
{a.jsonl: 1, "shards/*.tar": 2}          a mixture, by weight
{film: {path: user/name, split: train, streaming: true, weight: 2}, notes: {path: notes.jsonl}}     the same, in full
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from glob import glob as matches
from glob import has_magic
from pathlib import Path
from typing import Any

SUFFIXES = (".json", ".jsonl", ".parquet", ".tar")
HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Part:
    """One source: its files or dataset, and its share of the samples if it is one of a mixture."""

    path: str | list[str]
    weight: float | None = None  # None: the whole of the data
    split: str = "train"  # of a Hugging Face dataset; this and what follows
    subset: str | None = None
    streaming: bool = False  # read once as a stream, rather than fetched whole into the library's cache
    rows: int | None = None  # of a stream, at most

    @property
    def paths(self) -> list[str]:
        """Files, folders and ids, in order, with globs resolved."""
        given = [self.path] if isinstance(self.path, str) else self.path
        return [found for path in given for found in (_matched(path) if _is_glob(path) else [path])]


def parts_of(key: str, value: Any) -> list[Part]:
    """The sources that the configuration's `key` names, one unless it is a mapping. ValueError, in one line, for what
    is written wrongly, and for files that do not exist."""
    if isinstance(value, Mapping):
        if not value:
            raise ValueError(f"{key}={{}} names nothing: give a path, a list of paths or a mapping of paths to weights")
        parts = [_part(f"{key}.{name}", name, given) for name, given in value.items()]
    else:
        parts = [Part(_path(key, value))]
    for part in parts:
        _check(key, part)
    return parts


def _part(key: str, name: Any, given: Any) -> Part:
    if isinstance(given, Mapping):
        known = {field.name for field in fields(Part)}
        if unknown := sorted(set(map(str, given)) - known):
            raise ValueError(f"{key} has {unknown[0]}: use {', '.join(sorted(known))}")
        if "path" not in given:
            raise ValueError(f"{key} has no path: give its file, list, glob or dataset")
        part = Part(**{"weight": 1.0, **given, "path": _path(f"{key}.path", given["path"])})
    else:
        part = Part(str(name), given)
    weight = part.weight
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise ValueError(f"{key} has weight {weight!r}: give a number above 0, or leave the source out")
    for what, value, kind in (("split", part.split, str), ("streaming", part.streaming, bool)):
        if not isinstance(value, kind):
            raise ValueError(f"{key}.{what}={value!r} is no {kind.__name__}")
    if part.rows is not None and (not part.streaming or not isinstance(part.rows, int) or part.rows < 1):
        raise ValueError(f"{key}.rows={part.rows!r} limits a stream: give a number from 1 on, with streaming=true")
    return part


def _path(key: str, value: Any) -> str | list[str]:
    paths = value if isinstance(value, list | tuple) else [value]
    if not paths or not all(isinstance(path, str) and path.strip() for path in paths):
        raise ValueError(f"{key}={value!r} is no path: give a file, a list, a glob, a dataset or a mapping to weights")
    return list(paths) if isinstance(value, list | tuple) else value


def _check(key: str, part: Part) -> None:
    for path in [part.path] if isinstance(part.path, str) else part.path:
        if _is_glob(path):
            if not _matched(path):
                raise ValueError(f"{key}={path} matches no file: correct the pattern")
        elif not is_dataset(path) and not Path(path).is_file():
            raise ValueError(f"{key}={path} does not exist: give a {', '.join(SUFFIXES)} file, a glob or a dataset")
    for path in part.paths:
        if Path(path).is_file() and Path(path).suffix not in SUFFIXES:
            suffix = Path(path).suffix or "a file without suffix"
            raise ValueError(f"{key}: cannot read {suffix} ({path}); use {', '.join(SUFFIXES)}")
        if part.streaming and not is_dataset(path):
            raise ValueError(f"{key}={path} is a file, which needs no streaming: leave it out, or name its folder")


def is_dataset(path: str) -> bool:
    """Whether this names a Hugging Face dataset: a folder, or an id and no file."""
    there = Path(path)
    return there.is_dir() or (not there.exists() and there.suffix not in SUFFIXES and bool(HUB.fullmatch(path)))


def _is_glob(path: str) -> bool:
    return has_magic(path) and not Path(path).exists()


def _matched(pattern: str) -> list[str]:
    return sorted(matches(pattern, recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
