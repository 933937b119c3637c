"""What every sample costs the two towers, from headers alone: arrays, so that a plan of millions is made in no time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

# (temporal grids, tokens of one temporal grid, rate) -> tokens kept of each video; of evs, which data does not know
KeptCounts: TypeAlias = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
Views: TypeAlias = tuple[float, ...]  # the rates at which a micro-batch is read


@dataclass(frozen=True)
class SampleSize:
    """One sample: the tokens that no pruning touches, its videos' token grids, and what its media ask of a tower."""

    fixed: int
    videos: tuple[tuple[int, int], ...]  # (temporal grids, tokens of one temporal grid)
    patches: int
    frames: int  # of the longest clip
    targets: int  # tokens that carry loss
    pairs: int  # of patches that share a temporal grid, or an image
    pixels: int = 0  # of all its media as they are decoded


@dataclass(frozen=True)
class Sizes:
    """All samples (S) side by side; sample s has the videos (V) from first_S[s] to first_S[s + 1]."""

    fixed_S: np.ndarray
    patches_S: np.ndarray
    frames_S: np.ndarray
    targets_S: np.ndarray
    pairs_S: np.ndarray
    pixels_S: np.ndarray
    first_S: np.ndarray  # one entry more
    grids_V: np.ndarray  # temporal grids
    tokens_V: np.ndarray  # of one temporal grid

    def __len__(self) -> int:
        return len(self.fixed_S)

    def tokens(self, places: np.ndarray, rate: float, kept: KeptCounts) -> np.ndarray:
        """Tokens that the language model reads of each of the samples at `places`."""
        videos, first = ragged(self.first_S, places)
        owner = np.repeat(np.arange(len(places)), np.diff(first))
        of_videos = kept(self.grids_V[videos], self.tokens_V[videos], rate)
        return self.fixed_S[places] + np.bincount(owner, of_videos, len(places)).astype(np.int64)

    def in_views(self, places: np.ndarray, rates: Views, kept: KeptCounts) -> np.ndarray:
        """[views, places] `tokens` at each of the rates."""
        return np.stack([self.tokens(places, rate, kept) for rate in rates])

    def unpruned(self) -> np.ndarray:
        """[S] tokens of the samples before pruning."""
        return self.tokens(np.arange(len(self)), 0.0, lambda grids, tokens, _: grids * tokens)

    def select(self, places: np.ndarray) -> Sizes:
        """Those of some samples, in the given order."""
        videos, first_S = ragged(self.first_S, places)
        each = {name: values[videos if name.endswith("_V") else places] for name, values in _columns(self)}
        return Sizes(**each, first_S=first_S)


def ragged(first_S: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of items that lie sample by sample, s's from first_S[s] on: which belong to the samples at `places`, and where
    each of these begins among them."""
    counts = first_S[places + 1] - first_S[places]
    first = np.append(0, counts.cumsum())
    return np.arange(first[-1]) + np.repeat(first_S[places] - first[:-1], counts), first


def joined(parts: Sequence[Sizes]) -> Sizes:
    """Many samples' sizes, part after part."""
    each = {name: np.concatenate([getattr(part, name) for part in parts]) for name, _ in _columns(parts[0])}
    return Sizes(**each, first_S=np.append(0, np.concatenate([np.diff(part.first_S) for part in parts]).cumsum()))


def _columns(sizes: Sizes) -> list[tuple[str, np.ndarray]]:
    return [(name, values) for name, values in vars(sizes).items() if name != "first_S"]


def gather(samples: Iterable[SampleSize]) -> Sizes:
    """Many samples' sizes as arrays."""
    each = list(samples)
    videos = [video for sample in each for video in sample.videos]
    grids, tokens = np.array(videos, dtype=np.int64).reshape(-1, 2).T
    return Sizes(
        fixed_S=np.array([sample.fixed for sample in each], dtype=np.int64),
        patches_S=np.array([sample.patches for sample in each], dtype=np.int64),
        frames_S=np.array([sample.frames for sample in each], dtype=np.int64),
        targets_S=np.array([sample.targets for sample in each], dtype=np.int64),
        pairs_S=np.array([sample.pairs for sample in each], dtype=np.int64),
        pixels_S=np.array([sample.pixels for sample in each], dtype=np.int64),
        first_S=np.cumsum([0, *(len(sample.videos) for sample in each)]),
        grids_V=grids,
        tokens_V=tokens,
    )
