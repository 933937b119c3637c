"""Rows held out for evaluation, such that no video or image is on both sides."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from data.sources.index import Index


def split(index: Index, fraction: float, seed: int) -> tuple[Index, Index]:
    """(to train on, held out): of the groups of samples that share media, in an order that the media's names and `seed`
    decide, as many as hold at most `fraction` of the samples. ValueError if that leaves one side empty."""
    held: list[int] = []
    for group in sorted(_groups(index), key=lambda group: _draw(index, group[0], seed)):
        if len(held) + len(group) <= fraction * len(index):
            held += group
    if not held:
        raise ValueError(
            f"data.eval_fraction={fraction:g} of {len(index)} rows is less than any one video's: "
            "raise it, or give data.eval"
        )
    train = np.setdiff1d(np.arange(len(index)), held)
    return index.select(train), index.select(np.array(sorted(held)))


def _groups(index: Index) -> list[list[int]]:
    """Places of samples that share a medium, directly or through others."""
    parent = list(range(len(index)))
    first: dict[int, int] = {}

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = place = parent[parent[place]]
        return place

    owner_M = np.repeat(np.arange(len(index)), np.diff(index.first_S))
    for place, name in zip(owner_M.tolist(), index.media_M.tolist()):
        parent[root(place)] = root(first.setdefault(name, place))
    groups: dict[int, list[int]] = {}
    for place in range(len(parent)):
        groups.setdefault(root(place), []).append(place)
    return list(groups.values())


def _draw(index: Index, place: int, seed: int) -> bytes:
    media = index.media_M[index.first_S[place] : index.first_S[place + 1]]
    return blake2b(f"{seed} {media.min() if len(media) else index.digests_S[place]}".encode(), digest_size=8).digest()
