from collections import Counter
from itertools import chain
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.batching.plans import Plan, shards

SMALL = st.integers(1, 5)


def stream(plan, steps):
    """The samples of all ranks over the first steps, in order."""
    ranks = [Plan(**{**vars(plan), "rank": rank}) for rank in range(plan.world)]
    micro = [zip(*(rank.micro_batches(step) for rank in ranks)) for step in range(steps)]
    return [sample for step in micro for turn in step for batch in turn for sample in batch]


@given(samples=st.integers(1, 40), batch=SMALL, accumulation=SMALL, world=SMALL, seed=st.integers(0, 9))
def test_no_sample_is_lost_or_repeated_within_an_epoch(samples, batch, accumulation, world, seed):
    plan = Plan(samples, batch, accumulation, world, 0, seed)
    seen = stream(plan, 2 * ceil(samples / plan.samples_per_step))
    for epoch in range(len(seen) // samples):
        assert sorted(seen[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


def test_the_samples_of_a_step_do_not_depend_on_how_it_is_split():
    splits = [Plan(50, b, a, w, 0, seed=3) for b, a, w in [(12, 1, 1), (3, 4, 1), (2, 3, 2), (1, 1, 12)]]
    assert len({tuple(stream(plan, 7)) for plan in splits}) == 1


def test_a_step_is_a_function_of_seed_and_step_alone():
    plan = Plan(30, 4, 2, 2, 1, seed=0)
    later = plan.micro_batches(11)
    assert later == Plan(30, 4, 2, 2, 1, seed=0).micro_batches(11)
    assert later != Plan(30, 4, 2, 2, 1, seed=1).micro_batches(11)
    assert [len(batch) for batch in later] == [4, 4]


def test_epochs_are_shuffled_differently():
    plan = Plan(8, 8, 1, 1, 0, seed=0)
    assert plan.micro_batches(0) != plan.micro_batches(1)


def test_an_impossible_plan_is_named():
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        Plan(8, 0, 1, 1, 0, 0)


@given(samples=st.integers(0, 40), batch=SMALL, world=SMALL)
def test_shards_see_every_sample_once_in_as_many_batches(samples, batch, world):
    ranks = [shards(samples, batch, world, rank) for rank in range(world)]
    assert Counter(chain(*chain(*ranks))) == Counter(range(samples))
    assert len({len(rank) for rank in ranks}) == 1
