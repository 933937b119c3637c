"""What is known of all samples before the first step: which can be used, and what each costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.encode import Encoder
from data.loader import START
from data.media.container import VideoInfo, probe
from data.media.images import probe_image
from data.sizes import SampleSize, Sizes, gather
from data.sources.base import Selection
from data.types import ImageRef, MediaError, Quarantined, RowError, Sample, VideoRef


def audit(samples: Sequence[Sample], *, threads: int = 16, progress: bool = True) -> Audit:
    """Opens every medium once, to read its header; nothing is decoded."""
    refs = list(dict.fromkeys(ref for sample in samples for ref in sample.media))
    with ThreadPoolExecutor(threads) as pool:
        opened = tqdm(pool.map(_header, refs), "checking media", len(refs), unit="file", disable=not progress)
        found = dict(zip(refs, opened))
    kept, lost = [], []
    for place, sample in enumerate(samples):
        if faults := [str(found[ref]) for ref in sample.media if isinstance(found[ref], MediaError)]:
            lost.append(Quarantined(sample.id, faults[0]))
        else:
            kept.append(place)
    return Audit(_selected(samples, kept), tuple(lost), found)


def measure(audited: Audit, encoder: Encoder, *, workers: int = 0, progress: bool = True) -> tuple[Audit, Sizes]:
    """The audit less the samples that cannot be encoded or are too long, and what each of the others costs."""
    workers = workers if len(audited.samples) > 256 * workers else 0  # fewer rows are measured before they start
    costs = DataLoader(
        Costs(audited, encoder),
        batch_size=256,
        collate_fn=list,
        num_workers=workers,
        multiprocessing_context=START if workers else None,
        generator=torch.Generator(),
    )
    found = list(chain.from_iterable(tqdm(costs, "measuring", unit="256 rows", disable=not progress)))
    kept = [place for place, cost in enumerate(found) if isinstance(cost, SampleSize)]
    lost = tuple(cost for cost in found if isinstance(cost, Quarantined))
    return Audit(_selected(audited.samples, kept), audited.lost + lost, audited.headers), gather(found[k] for k in kept)


class Costs(Dataset[SampleSize | Quarantined]):
    """Item k: what sample k costs, or why it cannot be used."""

    def __init__(self, audited: Audit, encoder: Encoder) -> None:
        self.audited, self.encoder = audited, encoder

    def __len__(self) -> int:
        return len(self.audited.samples)

    def __getitem__(self, place: int) -> SampleSize | Quarantined:
        sample = self.audited.samples[place]
        try:
            return self.encoder.cost(sample, self.audited.headers)
        except (MediaError, RowError) as error:
            return Quarantined(sample.id, str(error))


def _selected(samples: Sequence[Sample], places: list[int]) -> Sequence[Sample]:
    return samples if len(places) == len(samples) else Selection(samples, np.array(places, dtype=np.int64))


@dataclass(frozen=True)
class Audit:
    """Samples whose media have usable headers, the others, and the headers or what is wrong with them."""

    samples: Sequence[Sample]
    lost: tuple[Quarantined, ...]
    headers: Mapping[VideoRef | ImageRef, VideoInfo | tuple[int, int] | MediaError]


def _header(ref: VideoRef | ImageRef) -> VideoInfo | tuple[int, int] | MediaError:
    try:
        return probe(ref) if isinstance(ref, VideoRef) else probe_image(ref)
    except MediaError as error:
        return error
