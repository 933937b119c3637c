"""What is known of all samples before the first step: which can be used, and what each costs.

Made in chunks that ranks, workers and other runs share, and kept beside the data: a later start reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data.batching.sizes import Sizes, joined, ragged
from data.encoding.encoder import Encoder
from data.sources.chunks import ROWS, Chunk
from data.sources.collection import VERSION, Collection, ReadOptions
from data.sources.headers import stat
from data.sources.shared import complete
from data.sources.versions import remove_earlier, versioned
from data.types import Quarantined


@dataclass(frozen=True)
class Index:
    """The usable samples of a collection (S); the media (M) of sample s go from first_S[s] to first_S[s + 1]."""

    places_S: np.ndarray  # in the collection, ascending
    digests_S: np.ndarray  # uint64, of what training sees of the row
    sizes: Sizes
    first_S: np.ndarray
    media_M: np.ndarray  # uint64, of a medium's name
    own_settings_S: np.ndarray  # bool: whether the row says how its videos are sampled or resized
    lost: tuple[Quarantined, ...]

    def __len__(self) -> int:
        return len(self.places_S)

    def select(self, chosen: np.ndarray) -> Index:
        """Those of some of the usable samples, in the given order."""
        media, first_S = ragged(self.first_S, chosen)
        sizes = self.sizes.select(chosen)
        return replace(
            self,
            places_S=self.places_S[chosen],
            digests_S=self.digests_S[chosen],
            sizes=sizes,
            first_S=first_S,
            media_M=self.media_M[media],
            own_settings_S=self.own_settings_S[chosen],
        )

    @property
    def digest(self) -> str:
        """Of all that training sees, in order."""
        return xxhash.xxh3_64_hexdigest(self.digests_S.tobytes())


def build_index(collection: Collection, encoder: Encoder | None, reading: ReadOptions) -> Index:
    """The index of all rows; without an encoder media are not looked at and every size is 0.

    ValueError where nothing is usable.
    """
    stat.cache_clear()
    versions = [chunk.versions() for chunk in _chunks(collection, encoder, reading)]
    chunks = [each[-1] for each in versions]
    if not any(chunk.path.exists() for chunk in chunks):
        _report_other_version(chunks[0].path.parent)
    complete(
        chunks,
        "measuring samples",
        workers=min(reading.workers, len(chunks)),
        progress=reading.progress,
        on_result=reading.on_result,
    )
    index = _merged(chunks)
    remove_earlier([chunk.path for each in versions for chunk in each])
    if not len(index):
        rows = len(collection.samples)
        raise ValueError(f"none of {rows} samples is usable; first reason: {index.lost[0].reason}")
    return index


def _chunks(collection: Collection, encoder: Encoder | None, reading: ReadOptions) -> Iterator[Chunk]:
    how = (asdict(reading.format), reading.media_root, None if encoder is None else encoder.identity)
    for samples in collection.samples.parts:
        for begin in range(0, len(samples), ROWS):
            rows = range(begin, min(begin + ROWS, len(samples)))
            name = versioned((samples.source, how), (samples.rows.identity, rows))
            yield Chunk(samples, rows, encoder, samples.kept / f"{name}.index")


def _merged(chunks: list[Chunk]) -> Index:
    """The chunks' parts, one after the other."""
    names = [each.name for each in fields(Sizes)]
    parts: dict[str, list[Any]] = {"sizes": []}
    lost: list[Quarantined] = []
    first = 0
    for chunk in chunks:
        arrays, notes = chunk.load()
        lost += [Quarantined(id, reason) for _, id, reason in notes["lost"]]
        parts["sizes"].append(Sizes(**{name: arrays.pop(name) for name in names}))
        arrays["usable"] += first
        for name, values in arrays.items():
            parts.setdefault(name, []).append(values)
        first += len(chunk.rows)
    of = {name: np.concatenate(values) for name, values in parts.items() if name != "sizes"}
    first_S = np.append(0, of["media_counts"].cumsum())
    return Index(
        of["usable"], of["digests"], joined(parts["sizes"]), first_S, of["media"], of["own_settings"], tuple(lost)
    )


def _report_other_version(folder: Path) -> None:
    if others := sorted(other.name for other in folder.parent.glob("v*") if other.name != f"v{VERSION}"):
        print(f"{folder.parent}: its index is of version {others[-1][1:]}, not {VERSION}: rebuilding it")
