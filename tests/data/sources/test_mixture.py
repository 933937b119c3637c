"""Mixtures: shares as asked for, and in each source every sample once before any comes again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batching.plans import Plan
from data.sources.mixture import Mixture


def drawn(mixture, epochs, seed=0):
    return np.concatenate([mixture.order(seed, epoch) for epoch in range(epochs)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0.05, 20)), min_size=2, max_size=4), st.integers(0, 9))
def test_no_sample_is_lost_or_repeated_within_its_sources_epoch(sources, seed):
    mixture = Mixture(*map(tuple, zip(*sources)))
    places, first = drawn(mixture, 7, seed), 0
    for length in mixture.lengths:
        own = places[(places >= first) & (places < first + length)] - first
        whole = len(own) // length * length
        assert all(sorted(epoch) == list(range(length)) for epoch in own[:whole].reshape(-1, length).tolist())
        assert len(set(own[whole:].tolist())) == len(own) - whole
        first += length


def test_shares_are_the_weights():
    places = drawn(Mixture((1000, 50), (1.0, 3.0)), 4)
    assert len(places) == 4200 and (places >= 1000).sum() == pytest.approx(3150, abs=1)
    assert (places[:400] >= 1000).mean() == pytest.approx(0.75, abs=0.1)


def test_an_epochs_order_is_a_function_of_seed_and_epoch():
    mixture = Mixture((40, 7), (1.0, 1.0))
    assert np.array_equal(mixture.order(3, 5), Mixture((40, 7), (1.0, 1.0)).order(3, 5))
    assert not np.array_equal(mixture.order(3, 5), mixture.order(4, 5))


def test_a_plan_draws_from_a_mixture_whatever_ranks_share_it():
    mixture = Mixture((40, 7), (1.0, 2.0))
    whole = [Plan(47, 2, 2, 1, 0, 0, mixture=mixture).micro_batches(step) for step in range(30)]
    ranks = [Plan(47, 2, 1, 2, rank, 0, mixture=mixture) for rank in (0, 1)]
    assert whole == [tuple(rank.micro_batches(step)[0] for rank in ranks) for step in range(30)]
