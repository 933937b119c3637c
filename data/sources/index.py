"""The index of all samples, built before the first step: which are usable, and their predicted sizes.

It is built in chunks that ranks, workers and other runs share, and stored next to the data for later starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data.encoding.encoder import Encoder
from data.sizes import Sizes, joined, ragged
from data.sources.chunks import ROWS, Chunk
from data.sources.collection import VERSION, Collection, ReadOptions
from data.sources.headers import stat
from data.sources.versions import remove_superseded, versioned
from data.types import Quarantined


@dataclass(frozen=True)
class Index:
    """The usable samples (S) of a collection; sample s has the media (M) first_S[s] to first_S[s + 1] - 1."""

    indices_S: np.ndarray  # index in the collection, ascending
    digests_S: np.ndarray  # uint64, hash of everything in the row that affects training
    sizes: Sizes
    first_S: np.ndarray
    media_M: np.ndarray  # uint64, hash of each medium's name
    own_settings_S: np.ndarray  # bool: True if the row has settings for its videos
    quarantined: tuple[Quarantined, ...]

    def __len__(self) -> int:
        return len(self.indices_S)

    def select(self, positions: np.ndarray) -> Index:
        """The index of some of the usable samples, by position, in that order."""
        media, first_S = ragged(self.first_S, positions)
        sizes = self.sizes.select(positions)
        return replace(
            self,
            indices_S=self.indices_S[positions],
            digests_S=self.digests_S[positions],
            sizes=sizes,
            first_S=first_S,
            media_M=self.media_M[media],
            own_settings_S=self.own_settings_S[positions],
        )

    @property
    def digest(self) -> str:
        """Hash of everything in the rows that affects training, in order."""
        return xxhash.xxh3_64_hexdigest(self.digests_S.tobytes())


def build_index(collection: Collection, encoder: Encoder | None, reading: ReadOptions) -> Index:
    """The index of all rows. Without an encoder, media are not opened and every size is 0.

    Raises ValueError if no sample is usable.
    """
    stat.cache_clear()
    versions = [chunk.versions() for chunk in _chunks(collection, encoder, reading)]
    chunks = [history[-1] for history in versions]
    if not any(chunk.path.exists() for chunk in chunks):
        _report_other_version(chunks[0].path.parent)
    reading.complete(chunks, "measuring samples")
    index = _merged(chunks)
    remove_superseded([chunk.path for history in versions for chunk in history])
    if not len(index):
        rows = len(collection.samples)
        raise ValueError(f"none of {rows} samples is usable; first reason: {index.quarantined[0].reason}")
    return index


def _chunks(collection: Collection, encoder: Encoder | None, reading: ReadOptions) -> Iterator[Chunk]:
    options = (asdict(reading.format), reading.media_root, None if encoder is None else encoder.identity)
    for samples in collection.samples.parts:
        for begin in range(0, len(samples), ROWS):
            rows = range(begin, min(begin + ROWS, len(samples)))
            name = versioned((samples.source, options), (samples.rows.identity, rows))
            yield Chunk(samples, rows, encoder, samples.cache / f"{name}.index")


def _merged(chunks: list[Chunk]) -> Index:
    """Concatenate the chunks into one index."""
    names = [column.name for column in fields(Sizes)]
    parts: dict[str, list[Any]] = {"sizes": []}
    quarantined: list[Quarantined] = []
    first = 0
    for chunk in chunks:
        arrays, notes = chunk.load()
        quarantined += [Quarantined(id, reason) for _, id, reason in notes["lost"]]
        parts["sizes"].append(Sizes(**{name: arrays.pop(name) for name in names}))
        arrays["usable"] += first
        for name, values in arrays.items():
            parts.setdefault(name, []).append(values)
        first += len(chunk.rows)
    columns = {name: np.concatenate(values) for name, values in parts.items() if name != "sizes"}
    first_S = np.append(0, columns["media_counts"].cumsum())
    return Index(
        columns["usable"],
        columns["digests"],
        joined(parts["sizes"]),
        first_S,
        columns["media"],
        columns["own_settings"],
        tuple(quarantined),
    )


def _report_other_version(folder: Path) -> None:
    if versions := sorted(path.name for path in folder.parent.glob("v*") if path.name != f"v{VERSION}"):
        print(f"{folder.parent}: its index has format version {versions[-1][1:]}, not {VERSION}: rebuilding it")
