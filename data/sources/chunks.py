"""The index's parts: some rows of one file, read, their media's headers opened and their tokens counted.

A chunk's file is named by all that it follows from. Where one of its media has changed since, it is made anew, under a
name that says so too.
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

from data.batching.sizes import SampleSize, gather
from data.encoding.encoder import Encoder
from data.encoding.size_prediction import predict_sizes
from data.sources.base import Samples
from data.sources.headers import THREADS, Header, Ref, read_headers, stat
from data.sources.versions import version_after
from data.types import FrameList, ImageRef, Quarantined, RowError, Sample

ROWS = 2048  # of a chunk
BATCH = 64  # rows whose media are in memory together, where they are bytes of the rows
UNUSABLE = SampleSize(0, (), 0, 0, 0, 0)

Stats: TypeAlias = dict[str, list[int] | None]  # size and time of change of files, None where there is none


@dataclass(frozen=True)
class Chunk:
    """Some rows of one file, and where what is known of them is kept. Without an encoder, media are not looked at."""

    samples: Samples
    rows: range
    encoder: Encoder | None
    path: Path

    def make(self, path: Path) -> None:
        found: list[Sample | Quarantined] = []
        headers: dict[Ref, Header] = {}
        for begin in range(0, len(self.rows), BATCH):
            batch = [_sample(self.samples, place) for place in self.rows[begin : begin + BATCH]]
            if self.encoder is not None:
                refs = [ref for sample in _usable(batch) for ref in sample.media]
                read = read_headers(refs, self.encoder.limits)
                headers |= {_light(ref): header for ref, header in read.items()}
            found += [_lightened(each) if isinstance(each, Sample) else each for each in batch]
        known = list(_usable(found))  # also those that turn out to be unusable, until their media change
        sizes = self._sizes(found, headers)
        stats = _stats(each for sample in known for each in _files(sample))
        kept: dict[str, Any] = _arrays(found, sizes, stats)
        with path.open("wb") as file:
            np.savez(file, **kept)

    def _sizes(self, found: list[Sample | Quarantined], headers: Mapping[Ref, Header]) -> list[SampleSize]:
        """One for each row; rows that turn out to be unusable are put aside in `found`."""
        sizes = [UNUSABLE] * len(found)
        if self.encoder is None:
            return sizes
        places = [place for place, each in enumerate(found) if isinstance(each, Sample)]
        for place, cost in zip(places, predict_sizes(self.encoder, list(_usable(found)), headers)):
            if isinstance(cost, SampleSize):
                sizes[place] = cost
            else:
                found[place] = Quarantined(found[place].id, str(cost))
        return sizes

    def versions(self) -> list[Chunk]:
        """The chunk under each name that it has had as its media changed; the last is right for them as they are."""
        found = [self]
        while found[-1].path.exists():
            noted = found[-1]._noted()
            now = None if noted is None else _stats(noted)
            if now == noted and now is not None:
                break
            name, taken = version_after(self.path.stem, now and sorted(now.items())), {each.path.stem for each in found}
            while name in taken:
                name = version_after(name, "again")
            found.append(replace(self, path=self.path.with_name(name + self.path.suffix)))
        return found

    def _noted(self) -> Stats | None:
        """The media as they were; None, with a line that says so, where the file cannot be read."""
        try:
            return self.load()[1]["media"]
        except (BadZipFile, ValueError, KeyError, EOFError):
            print(f"{self.path}: truncated or corrupt part of the index: rebuilding it")
            return None

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What was kept: arrays, and notes on rows that were lost and files that were looked at."""
        with np.load(self.path) as kept:
            arrays = dict(kept)
        return arrays, json.loads(arrays.pop("notes").tobytes())


def digest(sample: Sample) -> int:
    """Of what training sees of a row: text and media names, not where they lie."""
    seen: tuple[Any, ...] = sample.id, [(turn.role, [seen_part(part) for part in turn.parts]) for turn in sample.turns]
    if not all(turn.learned for turn in sample.turns):
        seen += ([turn.learned for turn in sample.turns],)
    return xxhash.xxh3_64_intdigest(repr(seen).encode())


def seen_part(part: str | Ref) -> Any:
    """What training sees of a part; unlike `repr`, of a video also its settings and its list of frames."""
    if isinstance(part, str):
        return part
    name = replace(part, path=part.path.rsplit("/", 1)[-1])
    if isinstance(part, ImageRef):
        return name
    frames = part.content if isinstance(part.content, FrameList) else None
    listed = frames and ([seen_part(picture) for picture in frames.pictures], frames.times)
    return (name, part.settings, listed) if part.settings or listed else name


def _arrays(found: list[Sample | Quarantined], sizes: list[SampleSize], stats: Stats) -> dict[str, np.ndarray]:
    media = [[xxhash.xxh3_64_intdigest(ref.path.encode()) for ref in sample.media] for sample in _usable(found)]
    lost = [(place, each.id, each.reason) for place, each in enumerate(found) if isinstance(each, Quarantined)]
    usable = [place for place, each in enumerate(found) if isinstance(each, Sample)]
    return vars(gather(sizes[place] for place in usable)) | {
        "usable": np.array(usable, dtype=np.int64),
        "digests": np.array([digest(sample) for sample in _usable(found)], dtype=np.uint64),
        "own_settings": np.array([sample.has_own_settings for sample in _usable(found)], dtype=bool),
        "media": np.array([name for names in media for name in names], dtype=np.uint64),
        "media_counts": np.array([len(names) for names in media], dtype=np.int64),
        "notes": np.frombuffer(json.dumps({"lost": lost, "media": stats}).encode(), dtype=np.uint8),
    }


def _sample(samples: Samples, place: int) -> Sample | Quarantined:
    try:
        return samples[place]
    except RowError as error:
        return Quarantined(samples.rows.where(place), str(error))


def _usable(found: Iterable[Sample | Quarantined]) -> Iterable[Sample]:
    return (each for each in found if isinstance(each, Sample))


def _lightened(sample: Sample) -> Sample:
    """The sample without its media's bytes, which are named by their digest."""
    turns = (replace(turn, parts=tuple(map(_light, turn.parts))) for turn in sample.turns)
    return replace(sample, turns=tuple(turns))


def _light(part: Any) -> Any:
    content = getattr(part, "content", None)
    if isinstance(content, FrameList):
        return replace(part, content=replace(content, pictures=tuple(map(_light, content.pictures))))
    return replace(part, content=None) if isinstance(content, bytes) else part


def _files(sample: Sample) -> Iterator[str]:
    """The files of a sample's media, and the folders that it names, in which further frames may appear."""
    for ref in sample.media:
        if isinstance(ref.content, FrameList):
            yield from (picture.path for picture in ref.content.pictures if picture.content is None)
        if ref.content is None or isinstance(ref.content, FrameList):
            yield ref.path


def _stats(files: Iterable[str]) -> Stats:
    names = list(dict.fromkeys(files))
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(stat, names)))
