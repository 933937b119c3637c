"""Training on a tower that is given the survivors alone: what a batch loses, a whole run, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evs.adapters import adapter_for
from evs.methods.pixels import PixelDelta
from tests.evs.models import MIXED, QWEN, alone, prompts, tiny_model
from tests.runs import composed, rows, trained
from train.build import build_run
from train.served import policy_of
from train.task import UptrainTask

NORMAL = ((0.5,) * 3, (0.5,) * 3)


@pytest.fixture(params=QWEN)
def family(request) -> str:
    return request.param


@pytest.fixture
def batch(family):
    """Videos of noise on whole levels of 255."""
    packed = prompts(family, MIXED)
    return replace(packed, pixel_values_videos=whole(packed.pixel_values_videos), video_normal=NORMAL)


def whole(pixels):
    return (127.5 * pixels.clamp(-1, 1)).round() / 127.5


def task(family, place):
    model = tiny_model(family)
    return UptrainTask(model, adapter_for(model), PixelDelta(place))


@pytest.mark.parametrize("place", ["input", 2])
def test_before_tower_rate_zero_and_counts_are_those_after_it(family, batch, place):
    before, after = task(family, place), task(family, "merger")
    assert torch.equal(before(batch, 0.0).loss_sum, after(batch, 0.0).loss_sum)
    ours, theirs = before(batch, 0.6), after(batch, 0.6)
    assert (ours.kept, ours.targets) == (theirs.kept, theirs.targets)
    assert ours.loss_sum != theirs.loss_sum


@pytest.mark.parametrize("place", ["input", 1])
def test_before_tower_a_pack_loses_what_its_samples_lose_together(family, batch, place):
    pruning = task(family, place)
    apart = []
    for sample in range(len(MIXED)):
        one = alone(batch, family, MIXED, sample)
        apart.append(pruning(one, 0.6).loss_sum)
    torch.testing.assert_close(pruning(batch, 0.6).loss_sum, sum(apart), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("family", "place"), [("qwen2_5_vl", "input"), ("qwen3_vl", "1")], indirect=["family"])
def test_before_tower_a_run_on_footage_trains_and_says_so_in_its_policy(words, tmp_path, family, place):
    config = trained(*words("method=pixel_delta", f"method.prune_at={place}", "train.steps=2", family=family))
    assert all(row["loss"] > 0 for row in rows(tmp_path / "run") if "loss" in row)
    assert (policy_of(config).method, policy_of(config).scorer_dtype) == ("pixel_delta", None)
    assert str(policy_of(config).prune_at) == place


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("method.prune_at=9", "the tower of qwen2_5_vl has 4 blocks: use 0 to 4"),
        ("method.prune_at=tower", "use merger, input or the number of a block"),
    ],
)
def test_a_place_that_the_tower_does_not_have_is_one_line(words, word, message):
    with pytest.raises(ValueError, match=message):
        build_run(composed(*words("method=pixel_delta", word)))


def test_a_score_of_pixels_that_a_family_does_not_have_is_one_line(words):
    with pytest.raises(ValueError, match="nemotron_h_omni resizes frames in floating point: use method=evs"):
        build_run(composed(*words("method=pixel_delta", family="nemotron_h_omni")))


def test_a_score_of_features_before_the_tower_is_one_line(words):
    with pytest.raises(ValueError, match="prune_at=input needs a score of pixels: use method=pixel_delta"):
        build_run(composed(*words("method=evs", "method.prune_at=input")))
