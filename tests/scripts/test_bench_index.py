"""A start's benchmark at a small size: ranks share the first start, and the second makes nothing."""

import pytest

from scripts.bench.index import Options, index


@pytest.mark.slow
@pytest.mark.extended
def test_ranks_share_the_first_start_and_the_second_makes_nothing():
    found = index(Options(rows=5000, files=3))
    assert [rank["samples"] for rank in (*found["first"], *found["second"])] == [5000] * 4
    assert all(rank["worker_seconds"] > 0 for rank in found["first"])
    assert all(rank["worker_seconds"] < 0.1 for rank in found["second"])  # no worker but what starting a process costs
