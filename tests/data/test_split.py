"""Held-out rows share no video and no image with the rows that are trained on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sizes import SampleSize, gather
from data.sources.index import Index
from data.split import split


def rows(videos: list[list[int]]) -> Index:
    """What is known of samples with these videos, of which no two are alike."""
    media = [name for each in videos for name in each]
    first_S = np.cumsum([0, *map(len, videos)])
    digests = np.array([hash((tuple(each), videos[:i].count(each))) for i, each in enumerate(videos)])
    sizes = gather([SampleSize(1, (), 0, 0, 0, 0)] * len(videos))
    return Index(
        np.arange(len(videos)),
        digests,
        sizes,
        first_S,
        np.array(media, dtype=np.uint64),
        np.zeros(len(videos), bool),
        (),
    )


@given(
    st.lists(st.lists(st.integers(0, 30), max_size=3), min_size=2, max_size=60),
    st.floats(0.05, 0.95),
    st.integers(0, 9),
)
def test_no_video_is_on_both_sides_and_no_row_is_lost(videos, fraction, seed):
    samples = rows(videos)
    try:
        train, held = split(samples, fraction, seed)
    except ValueError:
        return
    assert not set(train.media_M.tolist()) & set(held.media_M.tolist())
    assert sorted([*train.indices_S, *held.indices_S]) == list(range(len(samples)))
    assert 0 < len(held) <= fraction * len(samples)


def test_the_split_follows_the_seed_and_not_the_order_of_rows():
    videos = [[i // 4] for i in range(80)]
    held = [set(split(rows(each), 0.25, 0)[1].media_M.tolist()) for each in (videos, videos[::-1])]
    assert held[0] == held[1] and len(held[0]) == 5
    assert held[0] != set(split(rows(videos), 0.25, 1)[1].media_M.tolist())


def test_a_fraction_that_holds_no_whole_video_is_refused():
    with pytest.raises(ValueError, match=r"data.eval_fraction=0.1 of 8 rows .* raise it, or give data.eval"):
        split(rows([[0]] * 8), 0.1, 0)
