"""Which rates a run draws: one a batch or one a video; a resumed run draws the same ones."""

from __future__ import annotations

import json

import pytest

from evs import FrameBeta, Uniform
from tests.runs import cut_off, trained
from tests.train.test_run import metrics
from train.views import StepRates


def listed(run_dir) -> list[list]:
    return [json.loads(line)["rates"] for line in (run_dir / "batches.jsonl").read_text().splitlines()]


def test_each_video_draws_from_a_stratum_of_its_own_whatever_the_other_places_hold():
    rates = StepRates(Uniform(0.0, 0.8), 4, seed=3, per_video=True)
    (videos,) = rates.of_batch(7, 2, [16] * 8)
    assert sorted(int(rate / 0.1 + 1e-9) for rate in videos) == list(range(8))
    assert rates.of_batch(7, 2, [16] * 8) == (videos,) and rates.of_batch(7, 3, [16] * 8) != (videos,)
    assert rates(7) == [(0.0,)] * 4  # what budgets count
    assert rates.of_batch(7, 0, []) == (0.0,)  # no video, nothing to prune


def test_views_of_a_video_are_as_far_apart_as_those_of_a_batch():
    low, high = StepRates(Uniform(0.0, 0.8), 4, seed=3, views=2, per_video=True).of_batch(0, 0, [16] * 5)
    assert max(low) < 0.4 <= min(high) and len({*low, *high}) == 10


def test_a_share_of_what_a_video_can_lose_is_its_rate():
    rates = StepRates(FrameBeta(0.75), 2, seed=0)
    (shares,), (videos,) = rates(5)[1], rates.of_batch(5, 1, [1, 4, 16])
    assert videos == [0.0, shares * 3 / 4, shares * 15 / 16]


def test_rates_that_differ_between_videos_are_not_known_beforehand():
    known = {dist: StepRates(dist, 1, 0).replayable for dist in (Uniform(), FrameBeta())}
    assert list(known.values()) == [True, False] and not StepRates(Uniform(), 1, 0, per_video=True).replayable


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [["train.rate_per_video=true", "train.batch_size=2"], ["rate=frame_beta", "train.token_budget=700"]],
    ids=["per_video", "frame_beta"],
)
def test_a_resumed_run_draws_the_rates_of_the_uninterrupted_one(words, tmp_path, more):
    more = [*more, "train.save_every=2", "tracker.batches=true"]
    trained(*words(*more, run_dir=tmp_path / "whole"))
    cut_off(tmp_path / "whole", tmp_path / "broken", 2)
    trained(*words(*more, "resume=auto", run_dir=tmp_path / "broken"))
    assert listed(tmp_path / "whole") == listed(tmp_path / "broken")
    assert metrics(tmp_path / "whole", "loss") == metrics(tmp_path / "broken", "loss")


@pytest.mark.slow
def test_budgets_hold_what_frame_beta_and_videos_of_their_own_rates_keep(words, tmp_path):
    for name, more in {"frames": ["rate=frame_beta"], "videos": ["train.rate_per_video=true"]}.items():
        trained(*words(*more, "train.token_budget=700", "train.steps=2", run_dir=tmp_path / name))
        assert max(metrics(tmp_path / name, "tokens/after")) <= 2 * 700
