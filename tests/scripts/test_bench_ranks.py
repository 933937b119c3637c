"""Two ranks take the steps of one plan, each its own part, equal in modelled cost."""

import pytest

from scripts.bench import ranks


@pytest.mark.slow
@pytest.mark.extended
def test_two_ranks_take_steps_of_equal_modelled_cost():
    found = ranks.ranks(ranks.Options(shape="tiny", steps=2))
    assert found["modelled cost"]["worst"] <= 0.03
    assert all(seconds > 0 for step in found["processor seconds"]["steps"] for seconds in step)
