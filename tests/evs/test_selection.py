from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evs import Grid, keep_count, select
from evs.selection import keep_counts

grids = st.builds(Grid, st.integers(1, 40), st.integers(1, 9), st.integers(1, 9))
rates = st.floats(0, 1, exclude_max=True)


def test_the_count_truncates_in_float64():
    assert keep_count(Grid(20, 10, 10), 0.9) == 199
    assert keep_count(Grid(4, 10, 10), 0.75) == 100


@given(grids, rates)
def test_at_least_one_grid_survives_and_never_more_than_all(grid, rate):
    assert grid.tokens_per_frame <= keep_count(grid, rate) <= grid.tokens


@given(grids, rates, st.integers(0, 99))
def test_exactly_the_counted_tokens_with_the_highest_scores_survive(grid, rate, seed):
    scores = torch.randint(0, 5, (grid.T, grid.H, grid.W), generator=torch.Generator().manual_seed(seed)).float()
    keep = select(scores, rate)
    assert int(keep.sum()) == keep_count(grid, rate)
    if not keep.all():
        assert scores[keep].min() >= scores[~keep].max()


def test_ties_go_to_the_lower_flat_index():
    keep = select(torch.zeros(4, 2, 2), 0.5)
    assert keep.flatten().tolist() == [True] * 8 + [False] * 8


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_rate_outside_the_unit_interval_is_an_error(rate):
    with pytest.raises(ValueError, match=r"outside \[0, 1\)"):
        keep_count(Grid(2, 2, 2), rate)


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 40)), min_size=1), st.floats(0, 0.999))
def test_counts_of_many_videos_are_those_of_each(videos, rate):
    grids, tokens = torch.tensor(videos).T
    assert keep_counts(grids, tokens, rate).tolist() == [keep_count(Grid(t, 1, n), rate) for t, n in videos]


def test_ties_do_not_depend_on_how_an_unstable_sort_would_order_them(monkeypatch):
    """CPU sorts happen to be stable, GPU sorts are so only on request: this one reverses ties unless it is asked."""
    argsort = torch.argsort

    def adversarial(values, *, descending=False, stable=False):
        if stable:
            return argsort(values, descending=descending, stable=True)
        return len(values) - 1 - argsort(values.flip(0), descending=descending, stable=True)

    monkeypatch.setattr(torch, "argsort", adversarial)
    assert select(torch.zeros(4, 2, 2), 0.5).flatten().tolist() == [True] * 8 + [False] * 8
