"""Training on a tower that is given the survivors alone: what a batch loses, a whole run, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evs.families import adapter_for
from evs.methods.base import depth
from evs.methods.evs import FrameDelta
from evs.methods.pixels import PixelDelta
from tests.evs.models import MIXED, QWEN, alone, prompts, tiny_model
from tests.runs import composed, cut_off, rows, trained
from train.build import build_run
from train.export.serving_metadata import policy_of
from train.task import TrainRequest, UptrainTask
from train.views import StepMethods

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
    assert torch.equal(before(batch, TrainRequest((0.0,))).loss_sum, after(batch, TrainRequest((0.0,))).loss_sum)
    ours, theirs = before(batch, TrainRequest((0.6,))), after(batch, TrainRequest((0.6,)))
    assert (ours.kept, ours.targets) == (theirs.kept, theirs.targets)
    assert ours.loss_sum != theirs.loss_sum


@pytest.mark.parametrize("place", ["input", 1])
def test_before_tower_a_pack_loses_what_its_samples_lose_together(family, batch, place):
    pruning = task(family, place)
    apart = []
    for sample in range(len(MIXED)):
        one = alone(batch, family, MIXED, sample)
        apart.append(pruning(one, TrainRequest((0.6,))).loss_sum)
    torch.testing.assert_close(pruning(batch, TrainRequest((0.6,))).loss_sum, sum(apart), atol=1e-3, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "place"), [("qwen2_5_vl", "input"), ("qwen3_vl", "1")], indirect=["family"])
def test_before_tower_a_run_on_footage_trains_and_says_so_in_its_policy(words, tmp_path, family, place):
    config = trained(*words("method=pixel_delta", f"method.prune_at={place}", "train.steps=2", family=family))
    assert all(row["loss"] > 0 for row in rows(tmp_path / "run") if "loss" in row)
    assert (policy_of(config).method, policy_of(config).scorer_dtype) == ("pixel_delta", None)
    assert str(policy_of(config).prune_at) == place


PLACES = (FrameDelta(None), PixelDelta("input"))


@given(methods=st.integers(1, 4), cycle=st.integers(0, 20), seed=st.integers(0, 3))
def test_before_tower_every_place_is_drawn_equally_often(methods, cycle, seed):
    each = tuple(PixelDelta(place) for place in range(methods))
    drawn = [StepMethods(each, seed)(methods * cycle + turn) for turn in range(methods)]
    assert set(drawn) == set(each)
    assert drawn == [StepMethods(each, seed)(methods * cycle + turn) for turn in range(methods)]


def test_before_tower_places_are_drawn_in_no_fixed_order():
    drawn = [StepMethods(PLACES, 0)(step) for step in range(40)]
    assert 3 < sum(one == other for one, other in pairwise(drawn)) < 36


def test_before_tower_plans_count_the_place_whose_tower_sees_most():
    one, two, last = PixelDelta("input"), PixelDelta(2), PixelDelta("merger")
    assert StepMethods((one, two), 0).latest == two
    assert StepMethods((one, last, two), 0).latest == last


def test_before_tower_a_drawn_place_trains_as_that_place_does(family, batch):
    either = task(family, "input")
    for method in PLACES:
        alone = UptrainTask(either.model, either.adapter, method)
        assert torch.equal(
            either(batch, TrainRequest((0.6,), method)).loss_sum, alone(batch, TrainRequest((0.6,))).loss_sum
        )


@pytest.mark.slow
def test_before_tower_a_run_that_draws_its_place_resumes_as_if_it_had_not_stopped(words, tmp_path):
    drawn = [
        "method=drawn",
        "train.save_every=2",
        "optim.warmup=2",
        "optim.final_lr=1",
        "rate=constant",
        "rate.rate=.75",
    ]
    trained(*words(*drawn, "train.steps=4", run_dir=tmp_path / "whole"))
    cut_off(tmp_path / "whole", tmp_path / "broken", 2)
    config = trained(*words(*drawn, "train.steps=4", "resume=auto", run_dir=tmp_path / "broken"))
    whole, broken = ([row for row in rows(tmp_path / name) if "loss" in row] for name in ("whole", "broken"))
    assert [row["loss"] for row in whole] == [row["loss"] for row in broken]
    # Alike but for the place, so that what the tower was given says which it was.
    patches = [row["patches"] / row["tokens/before"] for row in whole]
    places = [depth(StepMethods(PLACES, config.seed)(step)) for step in range(4)]
    assert set(places) == {None, 0}
    assert max(p for p, at in zip(patches, places) if at == 0) < min(p for p, at in zip(patches, places) if at is None)
    assert policy_of(config) == policy_of(config, "evs")
    assert (policy_of(config, "evs").method, policy_of(config, "evs").prune_at) == ("evs", "merger")
    assert (policy_of(config, "pixel_delta").method, policy_of(config, "pixel_delta").prune_at) == (
        "pixel_delta",
        "input",
    )
    with pytest.raises(ValueError, match="method=vidcom2: the run drew from evs, pixel_delta: use one of them"):
        policy_of(config, "vidcom2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "+method.methods.last={_target_: evs.methods.vidcom2.VidCom2}",
            "evs and vidcom2 keep different numbers of tokens: remove one",
        ),
        ("train.views=2", "train.views=2 prunes all views by one method: remove method.methods"),
        ("method.methods.pixel_delta.prune_at=9", "the tower of qwen2_5_vl has 4 blocks: use 0 to 4"),
    ],
)
def test_before_tower_methods_that_cannot_take_turns_are_one_line(words, change, message):
    with pytest.raises(ValueError, match=message):
        build_run(composed(*words("method=drawn", change)))


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
