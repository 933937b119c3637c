"""Opens all files and datasets that the configuration names, as one sequence of samples."""

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
from data.sources.base import ConcatSamples, Samples
from data.sources.files import JsonFile
from data.sources.mixture import Mixture
from data.sources.shards import TarFile
from data.sources.shared import Task, complete
from data.sources.spec import Source, is_dataset
from data.sources.tables import HubDataset, HubStream, ParquetFile
from data.sources.versions import remove_superseded, versioned

VERSION = 5  # format version of everything in the cache
Origin: TypeAlias = "JsonFile | TarFile | ParquetFile | HubStream | HubDataset"


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading rows of any source."""

    format: Format = field(default_factory=Format)
    media_root: str | None = None  # base of relative media paths, which none may leave; None: the rows' folder
    cache: str | None = None  # cache folder; None: next to the data, or in ~/.cache if that is read-only
    workers: int = 0
    progress: bool = True
    on_result: Callable[[], None] = lambda: None  # called for every part that is complete

    def cache_folder(self, data_folder: Path | None) -> Path:
        """The cache folder for data in `data_folder`; None: the data is not on this machine."""
        if self.cache is not None:
            base = Path(self.cache)
        elif data_folder is not None and os.access(data_folder, os.W_OK):
            base = data_folder / ".evs"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evs"
        return base / f"v{VERSION}"

    def complete(self, tasks: Sequence[Task], what: str) -> None:
        """Build the results of all tasks that do not exist yet."""
        workers = min(self.workers, len(tasks))
        complete(tasks, what, workers=workers, progress=self.progress, on_result=self.on_result)


@dataclass(frozen=True)
class Collection:
    """The samples of several sources, in the order of the sources."""

    samples: ConcatSamples
    names: tuple[str, ...]
    weights: tuple[float, ...] | None  # of a mixture; None: a single source
    files: tuple[int, ...]  # number of files of each source

    @cached_property
    def first_K(self) -> np.ndarray:
        """[sources + 1] index of each source's first sample."""
        return self.samples.first_P[np.cumsum([0, *self.files])]

    def mixture(self, indices: np.ndarray) -> Mixture | None:
        """The mixture over the samples at `indices` (ascending); None for a single source.

        Raises ValueError for a source without usable samples.
        """
        lengths = np.diff(np.searchsorted(indices, self.first_K))
        for name, length, rows in zip(self.names, lengths, np.diff(self.first_K)):
            if not length:
                raise ValueError(f"source {name} is empty: none of its {rows} rows can be used; remove it")
        if self.weights is None or len(self.weights) == 1:
            return None
        return Mixture(tuple(lengths.tolist()), self.weights)


def collect(sources: Sequence[Source], reading: ReadOptions) -> Collection:
    """Open the rows of all sources. Raises a one-line ValueError for files that cannot be read."""
    reading.format.check()
    origins = [[_open(path, source, reading) for path in source.paths] for source in sources]
    cached = [origin for files in origins for origin, *_ in files if not isinstance(origin, HubDataset)]
    reading.complete(cached, "reading data files")
    opened = [
        [Samples(origin.rows(), reading.format, cache, name) for origin, cache, name in files] for files in origins
    ]
    # Arrow files may still be mapped by other runs.
    remove_superseded([origin.path for origin in cached if isinstance(origin, JsonFile | TarFile)])
    for source, samples in zip(sources, opened):
        if not sum(map(len, samples)):
            raise ValueError(f"{source.path}: contains no rows; give data with at least one conversation")
    return Collection(
        ConcatSamples(tuple(samples for files in opened for samples in files)),
        tuple(str(source.path) for source in sources),
        tuple(source.weight for source in sources if source.weight is not None) or None,
        tuple(map(len, opened)),
    )


def _open(path: str, source: Source, reading: ReadOptions) -> tuple[Origin, Path, str]:
    """(file or dataset, folder of its index, its name independent of its version)."""
    root, restricted = reading.media_root, reading.media_root is not None
    if is_dataset(path):
        is_local = Path(path).is_dir()
        folder = Folder(root or (path if is_local else ""), restricted)
        cache = reading.cache_folder(Path(path) if is_local else None)
        name = repr((str(Path(path).absolute()) if is_local else path, source.subset, source.split, source.rows))
        if not source.streaming:
            return HubDataset(path, source.subset, source.split, folder), cache, name
        identity = repr((_stat_all(Path(path)) if is_local else path, source.subset, source.split, source.rows))
        copy = cache / f"{versioned(name, identity)}.arrow"
        return HubStream(path, source.subset, source.split, source.rows, copy, folder, identity), cache, name
    file, identity, name = Path(path), identity_of(Path(path)), str(Path(path).absolute())
    folder, cache = Folder(root or str(file.parent), restricted), reading.cache_folder(file.parent)
    copy = cache / versioned(name, identity)
    match file.suffix:
        case ".tar":
            return TarFile(file, copy.with_suffix(".npz"), identity), cache, name
        case ".parquet":
            return ParquetFile(file, copy.with_suffix(".arrow"), folder, identity), cache, name
        case _:
            return JsonFile(file, copy.with_suffix(".npy"), folder, identity), cache, name


def identity_of(file: Path) -> str:
    """A string that changes whenever the file does."""
    stat = file.stat()
    return f"{file.absolute()} {stat.st_size} {stat.st_mtime_ns}"


def _stat_all(folder: Path) -> list[str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(identity_of(file) for file in files if ".evs" not in file.parts)
