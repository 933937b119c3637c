"""Parses `data.train` into sources: the files and datasets that it names.

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
class Source:
    """The files or dataset of one source, and its weight in a mixture."""

    path: str | list[str]
    weight: float | None = None  # None: the only source
    split: str = "train"  # this and the keys below apply to Hugging Face datasets
    subset: str | None = None
    streaming: bool = False  # read once as a stream, instead of downloaded into the library's cache
    rows: int | None = None  # at most so many rows of a stream

    @property
    def paths(self) -> list[str]:
        """Files, folders and dataset ids, in order, with globs resolved."""
        entries = [self.path] if isinstance(self.path, str) else self.path
        return [path for entry in entries for path in (_matched(entry) if _is_glob(entry) else [entry])]


def parse_sources(key: str, value: Any) -> list[Source]:
    """The sources that the configuration's `key` names; one, unless it is a mapping.

    Raises a one-line ValueError for invalid values and for files that do not exist.
    """
    if isinstance(value, Mapping):
        if not value:
            raise ValueError(f"{key}={{}} names nothing: give a path, a list of paths or a mapping of paths to weights")
        sources = [_source(f"{key}.{name}", name, entry) for name, entry in value.items()]
    else:
        sources = [Source(_path(key, value))]
    for source in sources:
        _check(key, source)
    return sources


def _source(key: str, name: Any, entry: Any) -> Source:
    if isinstance(entry, Mapping):
        names = {field.name for field in fields(Source)}
        if unknown := sorted(set(map(str, entry)) - names):
            raise ValueError(f"{key}: unknown key {unknown[0]}; use {', '.join(sorted(names))}")
        if "path" not in entry:
            raise ValueError(f"{key} has no path: give its file, list, glob or dataset")
        source = Source(**{"weight": 1.0, **entry, "path": _path(f"{key}.path", entry["path"])})
    else:
        source = Source(str(name), entry)
    weight = source.weight
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise ValueError(f"{key} has weight {weight!r}: give a positive number, or remove the source")
    for option, value, kind in (("split", source.split, str), ("streaming", source.streaming, bool)):
        if not isinstance(value, kind):
            raise ValueError(f"{key}.{option}={value!r} must be of type {kind.__name__}")
    if source.rows is not None and (not source.streaming or not isinstance(source.rows, int) or source.rows < 1):
        raise ValueError(f"{key}.rows={source.rows!r} limits a stream: give a positive integer, with streaming=true")
    return source


def _path(key: str, value: Any) -> str | list[str]:
    paths = value if isinstance(value, list | tuple) else [value]
    if not paths or not all(isinstance(path, str) and path.strip() for path in paths):
        raise ValueError(
            f"{key}={value!r} is not a path: give a file, a list, a glob, a dataset or a mapping to weights"
        )
    return list(paths) if isinstance(value, list | tuple) else value


def _check(key: str, source: Source) -> None:
    for path in [source.path] if isinstance(source.path, str) else source.path:
        if _is_glob(path):
            if not _matched(path):
                raise ValueError(f"{key}={path} matches no file: correct the pattern")
        elif not is_dataset(path) and not Path(path).is_file():
            raise ValueError(f"{key}={path} does not exist: give a {', '.join(SUFFIXES)} file, a glob or a dataset")
    for path in source.paths:
        if Path(path).is_file() and Path(path).suffix not in SUFFIXES:
            suffix = Path(path).suffix or "a file without suffix"
            raise ValueError(f"{key}: cannot read {suffix} ({path}); use {', '.join(SUFFIXES)}")
        if source.streaming and not is_dataset(path):
            raise ValueError(f"{key}={path} is a file, which needs no streaming: remove streaming, or name its folder")


def is_dataset(path: str) -> bool:
    """True if `path` names a Hugging Face dataset: a folder, or an id that is not a file."""
    local = Path(path)
    return local.is_dir() or (not local.exists() and local.suffix not in SUFFIXES and bool(HUB.fullmatch(path)))


def _is_glob(path: str) -> bool:
    return has_magic(path) and not Path(path).exists()


def _matched(pattern: str) -> list[str]:
    return sorted(matches(pattern, recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
