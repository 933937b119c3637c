"""Which samples share a step: pure functions of (seed, epoch, step), so that resuming needs no state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Plan:
    """Fixed-size batches for one rank. Epochs follow each other without a gap in one endless stream of samples.

    A step takes the next accumulation * world * batch_size samples of the stream, whatever the three are, so the
    samples of a step do not depend on how it is split. No sample is lost or repeated within its epoch; the last step
    of an epoch is completed from the beginning of the next.
    """

    samples: int
    batch_size: int
    accumulation: int
    world: int
    rank: int
    seed: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "accumulation", "world"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        assert 0 <= self.rank < self.world

    @property
    def samples_per_step(self) -> int:
        """Over all ranks."""
        return self.batch_size * self.accumulation * self.world

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see every sample at least once."""
        return -(-self.samples // self.samples_per_step)

    def micro_batches(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Sample indices of this rank's micro-batches in `step` (from 0): `accumulation` tuples of `batch_size`."""
        first = step * self.samples_per_step
        begins = [first + (turn * self.world + self.rank) * self.batch_size for turn in range(self.accumulation)]
        return tuple(tuple(map(self._sample, range(begin, begin + self.batch_size))) for begin in begins)

    def _sample(self, place: int) -> int:
        epoch, within = divmod(place, self.samples)
        return int(_order(self.samples, self.seed, epoch)[within]) if self.shuffle else within


@lru_cache(maxsize=4)
def _order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's permutation of the samples."""
    return np.random.default_rng((seed, epoch)).permutation(samples)


def shards(samples: int, batch_size: int, world: int, rank: int) -> tuple[tuple[int, ...], ...]:
    """This rank's batches when every sample is seen exactly once over all ranks.

    All ranks get as many batches, some of them short or empty: ranks that share a model step together.
    """
    rounds = -(-samples // (batch_size * world))
    begins = [(turn * world + rank) * batch_size for turn in range(rounds)]
    return tuple(tuple(range(min(begin, samples), min(begin + batch_size, samples))) for begin in begins)
