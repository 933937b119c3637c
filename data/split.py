"""Splits rows into a training and an evaluation set that share no video or image."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from data.sources.index import Index


def split(index: Index, fraction: float, seed: int) -> tuple[Index, Index]:
    """(training set, evaluation set); the latter has at most `fraction` of the samples.

    Groups of samples that share media stay together. Their order follows from `seed` and the names of the media.
    Raises ValueError if the evaluation set would be empty.
    """
    eval_indices: list[int] = []
    for group in sorted(_groups(index), key=lambda group: _draw(index, group[0], seed)):
        if len(eval_indices) + len(group) <= fraction * len(index):
            eval_indices += group
    if not eval_indices:
        raise ValueError(
            f"data.eval_fraction={fraction:g} of {len(index)} rows is less than the rows of any single video: "
            "raise it, or give data.eval"
        )
    train = np.setdiff1d(np.arange(len(index)), eval_indices)
    return index.select(train), index.select(np.array(sorted(eval_indices)))


def _groups(index: Index) -> list[list[int]]:
    """Groups of indices of samples that share a medium, directly or through other samples."""
    parent = list(range(len(index)))
    first: dict[int, int] = {}

    def root(sample: int) -> int:
        while parent[sample] != sample:
            parent[sample] = sample = parent[parent[sample]]
        return sample

    owner_M = np.repeat(np.arange(len(index)), np.diff(index.first_S))
    for sample, name in zip(owner_M.tolist(), index.media_M.tolist()):
        parent[root(sample)] = root(first.setdefault(name, sample))
    groups: dict[int, list[int]] = {}
    for sample in range(len(parent)):
        groups.setdefault(root(sample), []).append(sample)
    return list(groups.values())


def _draw(index: Index, sample: int, seed: int) -> bytes:
    media = index.media_M[index.first_S[sample] : index.first_S[sample + 1]]
    return blake2b(f"{seed} {media.min() if len(media) else index.digests_S[sample]}".encode(), digest_size=8).digest()
