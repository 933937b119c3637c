"""Predicted sizes of samples, as arrays, so that planning batches over millions of samples takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

# (temporal grids, tokens per grid, rate) -> tokens kept of each video; passed in, because data does not import evs
KeptCounts: TypeAlias = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
Rates: TypeAlias = tuple[float, ...]  # pruning rates of a micro-batch, one per view


@dataclass(frozen=True)
class SampleSize:
    """Predicted size of one sample."""

    fixed: int  # tokens that are never pruned: text and images
    videos: tuple[tuple[int, int], ...]  # (temporal grids, tokens of one temporal grid)
    patches: int  # of all media, before merging
    frames: int  # of the longest video
    targets: int  # tokens that carry loss
    pairs: int  # pairs of patches within the same temporal grid or image, which attend to each other


@dataclass(frozen=True)
class Sizes:
    """Sizes of all samples (S) as arrays; sample s has the videos (V) first_S[s] to first_S[s + 1] - 1."""

    fixed_S: np.ndarray
    patches_S: np.ndarray
    frames_S: np.ndarray
    targets_S: np.ndarray
    pairs_S: np.ndarray
    first_S: np.ndarray  # [S + 1]
    grids_V: np.ndarray  # temporal grids
    tokens_V: np.ndarray  # tokens per temporal grid

    def __len__(self) -> int:
        return len(self.fixed_S)

    def tokens(self, indices: np.ndarray, rate: float, kept: KeptCounts) -> np.ndarray:
        """Tokens that reach the language model at a pruning rate, for each of the samples at `indices`."""
        videos, first = ragged(self.first_S, indices)
        owner = np.repeat(np.arange(len(indices)), np.diff(first))
        video_tokens = kept(self.grids_V[videos], self.tokens_V[videos], rate)
        return self.fixed_S[indices] + np.bincount(owner, video_tokens, len(indices)).astype(np.int64)

    def in_views(self, indices: np.ndarray, rates: Rates, kept: KeptCounts) -> np.ndarray:
        """[views, samples] `tokens` at each of the rates."""
        return np.stack([self.tokens(indices, rate, kept) for rate in rates])

    def unpruned(self) -> np.ndarray:
        """[S] tokens before pruning."""
        return self.tokens(np.arange(len(self)), 0.0, lambda grids, tokens, _: grids * tokens)

    def select(self, indices: np.ndarray) -> Sizes:
        """Sizes of the samples at `indices`, in that order."""
        videos, first_S = ragged(self.first_S, indices)
        columns = {name: values[videos if name.endswith("_V") else indices] for name, values in _columns(self)}
        return Sizes(**columns, first_S=first_S)


def ragged(first_S: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Select samples from a ragged array, in which sample s has the items first_S[s] to first_S[s + 1] - 1.

    Returns the indices of the items of the samples at `indices`, and the selection's own first_S.
    """
    counts = first_S[indices + 1] - first_S[indices]
    first = np.append(0, counts.cumsum())
    return np.arange(first[-1]) + np.repeat(first_S[indices] - first[:-1], counts), first


def joined(parts: Sequence[Sizes]) -> Sizes:
    """Concatenate the sizes of several parts."""
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name, _ in _columns(parts[0])}
    return Sizes(**columns, first_S=np.append(0, np.concatenate([np.diff(part.first_S) for part in parts]).cumsum()))


def _columns(sizes: Sizes) -> list[tuple[str, np.ndarray]]:
    return [(name, values) for name, values in vars(sizes).items() if name != "first_S"]


def gather(samples: Iterable[SampleSize]) -> Sizes:
    """Sizes of several samples as arrays."""
    sizes = list(samples)
    videos = [video for sample in sizes for video in sample.videos]
    grids, tokens = np.array(videos, dtype=np.int64).reshape(-1, 2).T
    names = ("fixed", "patches", "frames", "targets", "pairs")
    columns = {f"{name}_S": np.array([getattr(sample, name) for sample in sizes], dtype=np.int64) for name in names}
    first_S = np.cumsum([0, *(len(sample.videos) for sample in sizes)])
    return Sizes(**columns, first_S=first_S, grids_V=grids, tokens_V=tokens)
