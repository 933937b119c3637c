"""Rows held out for evaluation, such that no video or image is on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from data.sources.base import Selection
from data.types import Sample


def split(samples: Sequence[Sample], fraction: float, seed: int) -> tuple[Selection, Selection]:
    """(to train on, held out): of the groups of samples that share media, in an order that the media's paths and `seed`
    decide, as many as hold at most `fraction` of the samples. ValueError if that leaves one side empty."""
    held: list[int] = []
    for group in sorted(_groups(samples), key=lambda group: _draw(samples[group[0]], seed)):
        if len(held) + len(group) <= fraction * len(samples):
            held += group
    if not held:
        raise ValueError(
            f"data.eval_fraction={fraction:g} of {len(samples)} rows is less than any one video's: "
            "raise it, or give data.eval"
        )
    train = np.setdiff1d(np.arange(len(samples)), held)
    return Selection(samples, train), Selection(samples, np.array(sorted(held)))


def _groups(samples: Sequence[Sample]) -> list[list[int]]:
    """Places of samples that share a medium, directly or through others."""
    parent: list[int] = []
    first: dict[str, int] = {}

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = place = parent[parent[place]]
        return place

    for place, sample in enumerate(samples):
        parent.append(place)
        for ref in sample.media:
            parent[root(place)] = root(first.setdefault(ref.path, place))
    groups: dict[int, list[int]] = {}
    for place in range(len(parent)):
        groups.setdefault(root(place), []).append(place)
    return list(groups.values())


def _draw(sample: Sample, seed: int) -> bytes:
    name = min((ref.path for ref in sample.media), default=sample.id)
    return blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
