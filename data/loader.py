"""Samples -> steps, in worker processes."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.batching.plans import BudgetPlan, Plan
from data.collate import collate
from data.encoding.encoder import Encoder
from data.types import Batch, Encoding, MediaError, Quarantined, RowError, Sample

# Forked workers share the samples and start at once; they touch no device, and torch gives them one thread, so no lock
# of the parent's thread pools is waited for. Elsewhere than on Linux system libraries do not survive a fork.
START = "fork" if sys.platform == "linux" else "spawn"


@dataclass(frozen=True)
class Step:
    """One rank's micro-batches of one optimizer step, and what was left out of them."""

    batches: tuple[Batch, ...]
    quarantined: tuple[Quarantined, ...]
    resized: int = 0  # samples that decoded to another number of tokens than their headers promised

    def pin_memory(self) -> Step:
        """What a DataLoader with `pin_memory` calls."""
        return replace(self, batches=tuple(batch.pin_memory() for batch in self.batches))


@dataclass(frozen=True)
class Planned:
    """How many tokens each sample (S) has by its headers, and whether more may not be: where a budget was filled."""

    tokens_S: np.ndarray
    strict: bool

    def differs(self, place: int, encoding: Encoding) -> bool:
        """Whether decoding gave another number."""
        return len(encoding.input_ids_N) != self.tokens_S[place]

    def check(self, place: int, encoding: Encoding) -> None:
        """MediaError if there are more than a budget holds."""
        tokens, planned = len(encoding.input_ids_N), self.tokens_S[place]
        if self.strict and tokens > planned:
            raise MediaError(
                f"{encoding.id}: decodes to {tokens} tokens, where {planned} were planned by its media's headers; "
                "rewrite the files (ffmpeg -c copy), or start again if they have changed"
            )


class Steps(Dataset[Step]):
    """Item k: the micro-batches of step k. Samples that cannot be used are left out, never replaced."""

    def __init__(
        self,
        samples: Sequence[Sample],
        encoder: Encoder,
        micro_batches: Callable[[int], Sequence[Sequence[int]]],
        planned: Planned | None = None,
    ) -> None:
        self.samples, self.encoder, self.micro_batches, self.planned = samples, encoder, micro_batches, planned

    def __getitem__(self, step: int) -> Step:
        lost: list[Quarantined] = []
        resized: list[str] = []
        batches = [self._batch(places, lost, resized) for places in self.micro_batches(step)]
        return Step(tuple(batches), tuple(lost), len(resized))

    def _batch(self, places: Sequence[int], lost: list[Quarantined], resized: list[str]) -> Batch:
        encodings: list[Encoding] = []
        for place in places:
            name = f"sample {place}"
            try:
                sample = self.samples[place]
                name = sample.id
                encoding = self.encoder.encode(sample)
                if self.planned is not None and self.planned.differs(place, encoding):
                    resized.append(sample.id)
                    self.planned.check(place, encoding)
                encodings.append(encoding)
            except (MediaError, RowError) as error:
                lost.append(Quarantined(name, str(error)))
        return collate(encodings, filler_token=self.encoder.filler_token)


def step_loader(
    samples: Sequence[Sample],
    encoder: Encoder,
    plan: Plan | BudgetPlan,
    *,
    first_step: int,
    last_step: int,
    workers: int = 0,
    planned: Planned | None = None,
) -> DataLoader[Step]:
    """Steps first_step to last_step - 1 of `plan`, in order: wherever it starts, a step holds the same samples."""
    plan.micro_batches(first_step)  # what leads to it is planned here, once, not in every worker
    return _loader(Steps(samples, encoder, plan.micro_batches, planned), range(first_step, last_step), workers)


def shard_loader(
    samples: Sequence[Sample], encoder: Encoder, shards: Sequence[Sequence[int]], *, workers: int = 0
) -> DataLoader[Step]:
    """One Step of one batch for each of this rank's shards (data.batching.plans.shards)."""
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
        pin_memory=torch.cuda.is_available(),
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
