"""All the rows that a configuration names, opened: files side by side, in the order of their sources."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np

from data.formats.roots import Folder
from data.formats.rows import Format
from data.sources.base import Joined, Samples
from data.sources.files import JsonFile
from data.sources.mixture import Mixture
from data.sources.shards import TarFile
from data.sources.shared import complete
from data.sources.spec import Part, is_dataset
from data.sources.tables import Hub, ParquetFile, Stream
from data.sources.versions import remove_earlier, versioned

VERSION = 4  # of everything that is kept in a cache
Origin: TypeAlias = "JsonFile | TarFile | ParquetFile | Stream | Hub"


@dataclass(frozen=True)
class ReadOptions:
    """How rows are read, whatever they lie in."""

    format: Format = field(default_factory=Format)
    media_root: str | None = None  # where relative media names start, and which none may leave; None: beside the rows
    cache: str | None = None  # folder of what is kept; None: beside the data, or the user's where that is read-only
    workers: int = 0
    progress: bool = True
    on_result: Callable[[], None] = lambda: None  # called for every part that is there

    def folder(self, beside: Path | None) -> Path:
        """Where that is kept which follows from data in the folder `beside`, or from nowhere on this machine."""
        if self.cache is not None:
            base = Path(self.cache)
        elif beside is not None and os.access(beside, os.W_OK):
            base = beside / ".evs"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evs"
        return base / f"v{VERSION}"


@dataclass(frozen=True)
class Collection:
    """The samples of several sources, and which of them belong to which."""

    samples: Joined
    names: tuple[str, ...]
    weights: tuple[float, ...] | None  # None: all of one source
    files: tuple[int, ...]  # of each source

    @cached_property
    def first_K(self) -> np.ndarray:
        """Place of each source's first sample; one entry more."""
        return self.samples.first_P[np.cumsum([0, *self.files])]

    def mixture(self, places: np.ndarray) -> Mixture | None:
        """How the samples at these places, ascending, are drawn from. ValueError for a source without any."""
        lengths = np.diff(np.searchsorted(places, self.first_K))
        for name, length, rows in zip(self.names, lengths, np.diff(self.first_K)):
            if not length:
                raise ValueError(f"source {name} is empty: none of its {rows} rows can be used; leave it out")
        if self.weights is None or len(self.weights) == 1:
            return None
        return Mixture(tuple(lengths.tolist()), self.weights)


def collect(parts: Sequence[Part], reading: ReadOptions) -> Collection:
    """The rows of all parts. ValueError, in one line, for what cannot be read."""
    reading.format.check()
    origins = [[_origin(path, part, reading) for path in part.paths] for part in parts]
    made = [origin for each in origins for origin, *_ in each if not isinstance(origin, Hub)]
    complete(
        made,
        "reading data files",
        workers=min(reading.workers, len(made)),
        progress=reading.progress,
        on_result=reading.on_result,
    )
    opened = [
        [Samples(origin.rows(), reading.format, kept, source) for origin, kept, source in each] for each in origins
    ]
    remove_earlier([origin.path for origin in made if isinstance(origin, JsonFile | TarFile)])  # others may be mapped
    for part, each in zip(parts, opened):
        if not sum(map(len, each)):
            raise ValueError(f"{part.path}: holds no rows; give data with at least one conversation")
    return Collection(
        Joined(tuple(samples for each in opened for samples in each)),
        tuple(str(part.path) for part in parts),
        tuple(part.weight for part in parts if part.weight is not None) or None,
        tuple(map(len, opened)),
    )


def _origin(path: str, part: Part, reading: ReadOptions) -> tuple[Origin, Path, str]:
    """What is to be read, where that is kept which is found out about it, and its name, whatever its version."""
    root, fence = reading.media_root, reading.media_root is not None
    if is_dataset(path):
        here = Path(path).is_dir()
        folder, kept = Folder(root or (path if here else ""), fence), reading.folder(Path(path) if here else None)
        source = repr((str(Path(path).absolute()) if here else path, part.subset, part.split, part.rows))
        if not part.streaming:
            return Hub(path, part.subset, part.split, folder), kept, source
        identity = repr((_stat_all(Path(path)) if here else path, part.subset, part.split, part.rows))
        copy = kept / f"{versioned(source, identity)}.arrow"
        return Stream(path, part.subset, part.split, part.rows, copy, folder, identity), kept, source
    file, identity, source = Path(path), identity_of(Path(path)), str(Path(path).absolute())
    folder, kept = Folder(root or str(file.parent), fence), reading.folder(file.parent)
    copy = kept / versioned(source, identity)
    match file.suffix:
        case ".tar":
            return TarFile(file, copy.with_suffix(".npz"), identity), kept, source
        case ".parquet":
            return ParquetFile(file, copy.with_suffix(".arrow"), folder, identity), kept, source
        case _:
            return JsonFile(file, copy.with_suffix(".npy"), folder, identity), kept, source


def identity_of(file: Path) -> str:
    """Another one when the file is."""
    stat = file.stat()
    return f"{file.absolute()} {stat.st_size} {stat.st_mtime_ns}"


def _stat_all(folder: Path) -> list[str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(identity_of(file) for file in files if ".evs" not in file.parts)
