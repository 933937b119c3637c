"""What every method promises, whatever it scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evs import Grid
from evs.methods import METHODS, method_named

methods = st.sampled_from(sorted(METHODS)).map(method_named)
grids = st.builds(Grid, st.integers(1, 12), st.integers(1, 5), st.integers(1, 5))


@given(methods, grids, st.floats(0.01, 0.999))
def test_exactly_the_counted_tokens_survive(method, grid, rate):
    seen = torch.randn(grid.tokens, 6, generator=torch.Generator().manual_seed(grid.tokens))
    seen = (50 * seen).clamp(0, 255).to(torch.uint8) if method.needs == "pixels" else seen
    keep = method.keep(seen, grid, rate)
    assert keep.shape == (grid.T, grid.H, grid.W)
    assert int(keep.sum()) == method.count(grid, rate) <= grid.tokens


@given(methods, st.lists(grids, min_size=1), st.floats(0, 0.999))
def test_counts_of_many_videos_are_those_of_each(method, videos, rate):
    grids_V, tokens_V = torch.tensor([(grid.T, grid.tokens_per_frame) for grid in videos]).T
    assert method.counts(grids_V, tokens_V, rate).tolist() == [method.count(grid, rate) for grid in videos]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'evz' is unknown: use one of evs, "):
        method_named("evz")
