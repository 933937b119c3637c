"""Baselines with fewer or smaller frames: which videos are reduced, and which reasons are reported for the others."""

from __future__ import annotations

import pytest
from accelerate import Accelerator

from data.media.frames import FramePolicy
from data.types import Quarantined, Sample, Turn, VideoRef
from evs import FrameDelta
from tests.data import videos
from train.evaluation.answers import Answer
from train.evaluation.baselines import Baseline, Baselines
from train.evaluation.evaluation import Evaluation, Outcome
from train.model import encoder_of

FRAMES = {"long": 16, "short": 2}  # two of them are a temporal grid


@pytest.fixture
def baselines(checkpoint, tmp_path) -> Baselines:
    samples = []
    for name, count in FRAMES.items():
        clip = videos.write(tmp_path / f"{name}.mp4", [i / 2 for i in range(count)], size=(224, 224))
        samples.append(Sample(name, (Turn("user", (VideoRef(str(clip)), "What?")), Turn("assistant", ("yes",)))))
    encoder = encoder_of(checkpoint("qwen2_5_vl"), FramePolicy(max_pixels=50_176))
    return Baselines(Evaluation(Accelerator(cpu=True), encoder, samples, (0.0, 0.5)), FrameDelta())


@pytest.mark.parametrize("kind", ["frames", "pixels", "even"])
def test_a_video_of_which_pruning_drops_nothing_is_not_reduced(baselines, kind):
    made = baselines.make(kind, 0.5)
    long, short = made.samples
    assert short == baselines.samples[1] and long != baselines.samples[0]


def test_what_pruning_keeps_is_counted_over_the_videos_that_cannot_be_reduced_too(baselines):
    made = baselines.make("frames", 0.9)
    assert [sample.id for sample in made.samples] == ["short"] and made.kept == 1
    assert dict(made.lost) == {"fewer than min_frames=4": 1}
    assert made.pruned_kept == pytest.approx(2 / 8)  # a grid of each, of seven and of one


def test_samples_that_were_lost_while_asking_are_among_the_reasons(baselines):
    outcome = Outcome([], [Quarantined("long", "its video is gone")])
    result = baselines.compare(Baseline("frames", 0.5, [], 1.0, 0.5), outcome, [])
    assert (result.answers, result.questions, result.reason) == (0, 2, "its video is gone")


def test_answers_are_recalled_in_the_order_of_the_data(baselines):
    evaluation = baselines.evaluation
    keys = [(question, rate) for question in evaluation.by_key for rate in (0.0, 0.5)]
    existing = [Answer(*key, "s", 1.0, "greedy", "yes", 0.1, 1, 5, 10) for key in keys]
    assert evaluation.recall(existing[::-1]).answers == existing
