"""What the card of an export says of the training."""

from __future__ import annotations

import re

import pytest

from evs.policy import Policy
from tests.runs import composed
from train.export.card import HubMetadata, Measured, model_card

METHODS = {
    "pixel_delta": r"PixelDelta\(prune_at=merger",
    "drawn": r"FrameDelta\([^)]*\)\s+or\s+PixelDelta\(prune_at=input[^)]*\),\s+drawn for every step",
}


@pytest.mark.parametrize("method", METHODS)
def test_the_card_names_every_method_of_the_training(method):
    config = composed("+experiment=demo", "model.path=m", "data.train=d", "train.steps=1", f"method={method}")
    assert re.search(METHODS[method], model_card(config, Policy(), "step_1", Measured(), HubMetadata()).text)
