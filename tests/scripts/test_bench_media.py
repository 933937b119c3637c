"""Broken media and many clips at a small size: no medium ends a run or gets lost, and no worker grows."""

import pytest

from scripts.bench import media, worker


@pytest.mark.slow
def test_every_mutated_medium_is_decoded_or_left_out_with_a_reason():
    found = media.media(media.Options(count=60, workers=1))
    assert found["decoded"] + found["left_out"] == 60 and found["decoded"] >= 5
    assert {"wide.png", "bomb.png", "8k_one_frame.mp4"} <= found["lost"].keys()
    assert all(reason and "\n" not in reason for reason in found["lost"].values())
    assert found["worker_gib"] < found["trainer_gib"] + 2


@pytest.mark.slow
def test_a_data_worker_does_not_grow():
    assert worker.worker(worker.Options(clips=600, first=200))["growth"] < 0.05
