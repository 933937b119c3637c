"""Loads steps: encodes and collates samples in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.batching.plans import BudgetPlan, Plan
from data.collate import collate
from data.encoding.encoder import Encoder
from data.types import Batch, Encoding, MediaError, Quarantined, RowError, Sample
from data.workers import START, allow_open_files, ignore_signals


@dataclass(frozen=True)
class Step:
    """One rank's micro-batches of one optimizer step, and the samples that were skipped."""

    batches: tuple[Batch, ...]
    quarantined: tuple[Quarantined, ...]
    resized: int = 0  # samples whose number of tokens differs from the prediction

    def pin_memory(self) -> Step:
        """The step in page-locked memory; called by a DataLoader with `pin_memory`."""
        return replace(self, batches=tuple(batch.pin_memory() for batch in self.batches))


@dataclass(frozen=True)
class PredictedTokens:
    """Predicted tokens of each sample (S); `strict` if a budget was filled with them, so that more are an error."""

    tokens_S: np.ndarray
    strict: bool

    def differs(self, index: int, encoding: Encoding) -> bool:
        """True if the encoded sample has another number of tokens."""
        return len(encoding.input_ids_N) != self.tokens_S[index]

    def check(self, index: int, encoding: Encoding) -> None:
        """Raise MediaError if a strict prediction is exceeded."""
        tokens, planned = len(encoding.input_ids_N), self.tokens_S[index]
        if self.strict and tokens > planned:
            raise MediaError(
                f"{encoding.id}: has {tokens} tokens but {planned} were predicted from the headers of its media; "
                "rewrite the files (ffmpeg -c copy), or restart if they have changed"
            )


class Steps(Dataset[Step]):
    """Item k is step k. Samples that cannot be used are skipped, never replaced."""

    def __init__(
        self,
        samples: Sequence[Sample],
        encoder: Encoder,
        micro_batches: Callable[[int], Sequence[Sequence[int]]],
        planned: PredictedTokens | None = None,
    ) -> None:
        self.samples, self.encoder, self.micro_batches, self.planned = samples, encoder, micro_batches, planned

    def __getitem__(self, step: int) -> Step:
        quarantined: list[Quarantined] = []
        resized: list[str] = []
        batches = [self._batch(indices, quarantined, resized) for indices in self.micro_batches(step)]
        return Step(tuple(batches), tuple(quarantined), len(resized))

    def _batch(self, indices: Sequence[int], quarantined: list[Quarantined], resized: list[str]) -> Batch:
        encodings: list[Encoding] = []
        for index in indices:
            name = f"sample {index}"
            try:
                sample = self.samples[index]
                name = sample.id
                encoding = self.encoder.encode(sample)
                if self.planned is not None and self.planned.differs(index, encoding):
                    resized.append(sample.id)
                    self.planned.check(index, encoding)
                encodings.append(encoding)
            except (MediaError, RowError) as error:
                quarantined.append(Quarantined(name, str(error)))
        return collate(encodings, filler_token=self.encoder.filler_token)


def step_loader(
    samples: Sequence[Sample],
    encoder: Encoder,
    plan: Plan | BudgetPlan,
    *,
    first_step: int,
    last_step: int,
    workers: int = 0,
    planned: PredictedTokens | None = None,
) -> DataLoader[Step]:
    """Steps first_step to last_step - 1 of `plan`, in order. A step holds the same samples for any `first_step`."""
    plan.micro_batches(first_step)  # plans the earlier steps here, once, not in every worker
    return _loader(Steps(samples, encoder, plan.micro_batches, planned), range(first_step, last_step), workers)


def shard_loader(
    samples: Sequence[Sample], encoder: Encoder, shards: Sequence[Sequence[int]], *, workers: int = 0
) -> DataLoader[Step]:
    """One Step, of one batch, for each of this rank's shards (data.batching.plans.shards)."""
    return _loader(Steps(samples, encoder, Shards(tuple(map(tuple, shards)))), range(len(shards)), workers)


@dataclass(frozen=True)
class Shards:
    """Step k consists of shard k."""

    shards: tuple[tuple[int, ...], ...]

    def __call__(self, step: int) -> tuple[tuple[int, ...], ...]:
        return (self.shards[step],)


def _loader(steps: Steps, order: range, workers: int) -> DataLoader[Step]:
    if workers:
        allow_open_files()
    return DataLoader(
        steps,
        batch_size=None,
        sampler=order,  # a range serves as a sampler
        num_workers=workers,
        multiprocessing_context=START if workers else None,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # otherwise the loader draws from the global generator
    )
