"""Held-out rows share no video and no image with the rows that are trained on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.split import split
from data.types import Sample, Turn, VideoRef


def rows(videos: list[list[int]]) -> list[Sample]:
    turns = [tuple(VideoRef(f"{video}.mp4") for video in each) for each in videos]
    return [Sample(str(i), (Turn("user", refs), Turn("assistant", ("yes",)))) for i, refs in enumerate(turns)]


def paths(samples) -> set[str]:
    return {ref.path for sample in samples for ref in sample.media}


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
    assert not paths(train) & paths(held)
    assert sorted([*train.places, *held.places]) == list(range(len(samples)))
    assert 0 < len(held) <= fraction * len(samples)


def test_the_split_follows_the_seed_and_not_the_order_of_rows():
    samples = rows([[i // 4] for i in range(80)])
    ids = [{sample.id for sample in split(each, 0.25, 0)[1]} for each in (samples, samples[::-1])]
    assert ids[0] == ids[1] and len(ids[0]) == 20
    assert ids[0] != {sample.id for sample in split(samples, 0.25, 1)[1]}


def test_a_fraction_that_holds_no_whole_video_is_refused():
    with pytest.raises(ValueError, match=r"data.eval_fraction=0.1 of 8 rows .* raise it, or give data.eval"):
        split(rows([[0]] * 8), 0.1, 0)
