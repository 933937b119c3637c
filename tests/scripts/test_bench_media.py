"""Broken media at a small size: no medium ends a run, and none is lost."""

import pytest

from scripts.bench import media


@pytest.mark.slow
@pytest.mark.extended
def test_every_mutated_medium_is_decoded_or_quarantined_with_a_reason():
    found = media.media(media.Options(count=60, workers=1))
    assert found["decoded"] + found["quarantined"] == 60 and found["decoded"] >= 5
    assert {"wide.png", "bomb.png", "8k_one_frame.mp4"} <= found["lost"].keys()
    assert all(reason and "\n" not in reason for reason in found["lost"].values())
    assert found["worker_gib"] < found["trainer_gib"] + 2
