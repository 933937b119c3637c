"""The chunks of the index: rows of one file, with the predicted sizes of their samples.

The name of a chunk's file is a hash of everything that it depends on. If a medium has changed since, the chunk is
rebuilt under a new name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np
import xxhash

from data.encoding.encoder import Encoder
from data.encoding.size_prediction import predict_sizes
from data.sizes import SampleSize, gather
from data.sources.base import Samples
from data.sources.headers import THREADS, Header, Ref, read_headers, stat
from data.sources.versions import version_after
from data.types import FrameList, ImageRef, Quarantined, RowError, Sample

ROWS = 2048  # per chunk
BATCH = 64  # rows in memory at a time, with media that are bytes in the rows
UNUSABLE = SampleSize(0, (), 0, 0, 0, 0)

Stats: TypeAlias = dict[str, list[int] | None]  # [size, modification time] by file; None if the file does not exist


@dataclass(frozen=True)
class Chunk:
    """Some rows of one file, indexed in the file `path`. Without an encoder, media are not opened."""

    samples: Samples
    rows: range
    encoder: Encoder | None
    path: Path

    def make(self, path: Path) -> None:
        entries: list[Sample | Quarantined] = []
        headers: dict[Ref, Header] = {}
        for begin in range(0, len(self.rows), BATCH):
            batch = [_sample(self.samples, row) for row in self.rows[begin : begin + BATCH]]
            if self.encoder is not None:
                refs = [ref for sample in _usable(batch) for ref in sample.media]
                read = read_headers(refs, self.encoder.limits)
                headers |= {_part_without_bytes(ref): header for ref, header in read.items()}
            entries += [_without_bytes(entry) if isinstance(entry, Sample) else entry for entry in batch]
        converted = list(_usable(entries))  # includes samples that _sizes quarantines, since their media may change
        sizes = self._sizes(entries, headers)
        stats = _stats(file for sample in converted for file in _files(sample))
        arrays: dict[str, Any] = _arrays(entries, sizes, stats)
        with path.open("wb") as file:
            np.savez(file, **arrays)

    def _sizes(self, entries: list[Sample | Quarantined], headers: Mapping[Ref, Header]) -> list[SampleSize]:
        """The size of each row. Rows that turn out to be unusable are replaced in `entries` by their Quarantined."""
        sizes = [UNUSABLE] * len(entries)
        if self.encoder is None:
            return sizes
        positions = [position for position, entry in enumerate(entries) if isinstance(entry, Sample)]
        for position, size in zip(positions, predict_sizes(self.encoder, list(_usable(entries)), headers)):
            if isinstance(size, SampleSize):
                sizes[position] = size
            else:
                entries[position] = Quarantined(entries[position].id, str(size))
        return sizes

    def versions(self) -> list[Chunk]:
        """The chunk under every name it has had as its media changed; the last one is up to date."""
        history = [self]
        while history[-1].path.exists():
            recorded = history[-1]._recorded_stats()
            current = None if recorded is None else _stats(recorded)
            if current == recorded and current is not None:
                break
            name = version_after(self.path.stem, current and sorted(current.items()))
            taken = {chunk.path.stem for chunk in history}
            while name in taken:
                name = version_after(name, "again")
            history.append(replace(self, path=self.path.with_name(name + self.path.suffix)))
        return history

    def _recorded_stats(self) -> Stats | None:
        """Stats of the media when the chunk was built; None, with a printed line, if the chunk cannot be read."""
        try:
            return self.load()[1]["media"]
        except (BadZipFile, ValueError, KeyError, EOFError):
            print(f"{self.path}: truncated or corrupt part of the index: rebuilding it")
            return None

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(arrays, notes): notes lists the quarantined rows ("lost") and the stats of media files ("media")."""
        with np.load(self.path) as file:
            arrays = dict(file)
        return arrays, json.loads(arrays.pop("notes").tobytes())


def digest(sample: Sample) -> int:
    """Hash of everything in a row that affects training: text and names of media, without their folders."""
    content: tuple[Any, ...] = (
        sample.id,
        [(turn.role, [training_part(part) for part in turn.parts]) for turn in sample.turns],
    )
    if not all(turn.learned for turn in sample.turns):
        content += ([turn.learned for turn in sample.turns],)
    return xxhash.xxh3_64_intdigest(repr(content).encode())


def training_part(part: str | Ref) -> Any:
    """Everything in a part that affects training; unlike its `repr`, with the settings and frames of a video."""
    if isinstance(part, str):
        return part
    name = replace(part, path=part.path.rsplit("/", 1)[-1])
    if isinstance(part, ImageRef):
        return name
    frames = part.content if isinstance(part.content, FrameList) else None
    listed = frames and ([training_part(picture) for picture in frames.pictures], frames.times)
    return (name, part.settings, listed) if part.settings or listed else name


def _arrays(entries: list[Sample | Quarantined], sizes: list[SampleSize], stats: Stats) -> dict[str, np.ndarray]:
    media = [[xxhash.xxh3_64_intdigest(ref.path.encode()) for ref in sample.media] for sample in _usable(entries)]
    quarantined = [
        (position, entry.id, entry.reason) for position, entry in enumerate(entries) if isinstance(entry, Quarantined)
    ]
    usable = [position for position, entry in enumerate(entries) if isinstance(entry, Sample)]
    return vars(gather(sizes[position] for position in usable)) | {
        "usable": np.array(usable, dtype=np.int64),
        "digests": np.array([digest(sample) for sample in _usable(entries)], dtype=np.uint64),
        "own_settings": np.array([sample.has_own_settings for sample in _usable(entries)], dtype=bool),
        "media": np.array([name for names in media for name in names], dtype=np.uint64),
        "media_counts": np.array([len(names) for names in media], dtype=np.int64),
        "notes": np.frombuffer(json.dumps({"lost": quarantined, "media": stats}).encode(), dtype=np.uint8),
    }


def _sample(samples: Samples, row: int) -> Sample | Quarantined:
    try:
        return samples[row]
    except RowError as error:
        return Quarantined(samples.rows.where(row), str(error))


def _usable(entries: Iterable[Sample | Quarantined]) -> Iterable[Sample]:
    return (entry for entry in entries if isinstance(entry, Sample))


def _without_bytes(sample: Sample) -> Sample:
    """The sample without the bytes of its media, whose names contain a hash of them."""
    turns = (replace(turn, parts=tuple(map(_part_without_bytes, turn.parts))) for turn in sample.turns)
    return replace(sample, turns=tuple(turns))


def _part_without_bytes(part: Any) -> Any:
    content = getattr(part, "content", None)
    if isinstance(content, FrameList):
        return replace(part, content=replace(content, pictures=tuple(map(_part_without_bytes, content.pictures))))
    return replace(part, content=None) if isinstance(content, bytes) else part


def _files(sample: Sample) -> Iterator[str]:
    """Files of a sample's media, and folders of frames, to which pictures may be added."""
    for ref in sample.media:
        if isinstance(ref.content, FrameList):
            yield from (picture.path for picture in ref.content.pictures if picture.content is None)
        if ref.content is None or isinstance(ref.content, FrameList):
            yield ref.path


def _stats(files: Iterable[str]) -> Stats:
    names = list(dict.fromkeys(files))
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(stat, names)))
