"""What plans count of a pruning method."""

from __future__ import annotations

import pytest

from evs.methods.evs import FrameDelta
from evs.methods.pixels import PixelDelta
from tests.evs.models import tiny_model
from train.cost.plans import freed_patches


@pytest.mark.parametrize(("method", "patches"), [(FrameDelta(), None), (PixelDelta("input"), 4), (PixelDelta(2), 0)])
def test_a_dropped_token_frees_its_patches_only_before_the_tower(method, patches):
    assert freed_patches(method, tiny_model("qwen2_5_vl").config) == patches
