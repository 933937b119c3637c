"""Samples -> steps, in worker processes; and the check of all media before the first."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.batching import BudgetPlan, Plan
from data.encode import Encoder, collate
from data.media.container import VideoInfo, probe
from data.media.images import probe_image
from data.sizes import SampleSize, Sizes, gather
from data.types import Batch, Encoding, ImageRef, MediaError, RowError, Sample, VideoRef

# Forked workers share the samples and start at once; they touch no device, and torch gives them one thread, so no lock
# of the parent's thread pools is waited for. Elsewhere than on Linux system libraries do not survive a fork.
START = "fork" if sys.platform == "linux" else "spawn"


@dataclass(frozen=True)
class Quarantined:
    """A sample that was left out, and why in one line."""

    id: str
    reason: str


@dataclass(frozen=True)
class Step:
    """One rank's micro-batches of one optimizer step, and what was left out of them."""

    batches: tuple[Batch, ...]
    quarantined: tuple[Quarantined, ...]


class Steps(Dataset[Step]):
    """Item k: the micro-batches of step k. Samples that cannot be used are left out, never replaced."""

    def __init__(
        self,
        samples: Sequence[Sample],
        encoder: Encoder,
        micro_batches: Callable[[int], Sequence[Sequence[int]]],
    ) -> None:
        self.samples, self.encoder, self.micro_batches = samples, encoder, micro_batches

    def __getitem__(self, step: int) -> Step:
        lost: list[Quarantined] = []
        batches = [self._batch(places, lost) for places in self.micro_batches(step)]
        return Step(tuple(batches), tuple(lost))

    def _batch(self, places: Sequence[int], lost: list[Quarantined]) -> Batch:
        encodings: list[Encoding] = []
        for sample in (self.samples[place] for place in places):
            try:
                encodings.append(self.encoder.encode(sample))
            except (MediaError, RowError) as error:
                lost.append(Quarantined(sample.id, str(error)))
        return collate(encodings, filler_token=self.encoder.filler_token)


def step_loader(
    samples: Sequence[Sample],
    encoder: Encoder,
    plan: Plan | BudgetPlan,
    *,
    first_step: int,
    last_step: int,
    workers: int = 0,
) -> DataLoader[Step]:
    """Steps first_step to last_step - 1 of `plan`, in order: wherever it starts, a step holds the same samples."""
    plan.micro_batches(first_step)  # what leads to it is planned here, once, not in every worker
    return _loader(Steps(samples, encoder, plan.micro_batches), range(first_step, last_step), workers)


def shard_loader(
    samples: Sequence[Sample], encoder: Encoder, shards: Sequence[Sequence[int]], *, workers: int = 0
) -> DataLoader[Step]:
    """One Step of one batch for each of this rank's shards (data.batching.shards)."""
    return _loader(Steps(samples, encoder, Shards(tuple(map(tuple, shards)))), range(len(shards)), workers)


@dataclass(frozen=True)
class Shards:
    """Step k is shard k alone."""

    shards: tuple[tuple[int, ...], ...]

    def __call__(self, step: int) -> tuple[tuple[int, ...], ...]:
        return (self.shards[step],)


def _loader(steps: Steps, order: range, workers: int) -> DataLoader[Step]:
    if workers:
        _allow_open_files()
    return DataLoader(
        steps,
        batch_size=None,
        sampler=order,  # a range is a sampler
        num_workers=workers,
        multiprocessing_context=START if workers else None,
        persistent_workers=workers > 0,
        worker_init_fn=_outlast_signals,
        generator=torch.Generator(),  # or the loader draws from the global one
    )


def _outlast_signals(_: int) -> None:
    """Schedulers and terminals signal all processes of a job, but a run that is to save needs its workers until its
    own end, which ends them too."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _allow_open_files() -> None:
    """Lifts the soft limit to the hard one: each tensor on its way from a worker is an open file, and the usual 1024
    are few for 8 workers at 16 micro-batches a step."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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


@dataclass(frozen=True)
class Selection(Sequence[Sample]):
    """Some of a sequence's samples."""

    samples: Sequence[Sample]
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: Any) -> Any:
        chosen = self.places[place]
        return [self.samples[i] for i in chosen] if isinstance(place, slice) else self.samples[chosen]


def _header(ref: VideoRef | ImageRef) -> VideoInfo | tuple[int, int] | MediaError:
    try:
        return probe(ref) if isinstance(ref, VideoRef) else probe_image(ref)
    except MediaError as error:
        return error
