"""The server's rule: what the family's own video processor samples, from the header's count and rate."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.video_utils import VideoMetadata

from data.media.container import VideoInfo
from data.media.frames import FramePolicy, Sampler
from data.media.processor import configured


def info(frames, fps, readable=None, first=0):
    return VideoInfo(frames / fps, fps, 64, 48, frames, frames if readable is None else readable, first)


def sampler(processor, policy=None):
    return Sampler(configured(processor.video_processor, policy or FramePolicy()))


@pytest.mark.parametrize("fps", [10.0, 25.0, 30000 / 1001, 59.94])
@pytest.mark.parametrize("frames", [2, 3, 29, 250, 451, 5395, 30000])
def test_frames_are_those_of_the_familys_own_video_processor(processor, frames, fps):
    rule = processor.video_processor
    theirs = rule.sample_frames(VideoMetadata(total_num_frames=frames, fps=fps), fps=2.0)
    ours = sampler(processor)(info(frames, fps))
    assert ours.tolist() == np.minimum(theirs, frames - 1).tolist()
    assert len(ours) <= 768 and (np.diff(ours) > 0).all()


def test_limits_are_the_policys_and_the_processor_stays_as_it_is(processor):
    rule = processor.video_processor
    before = (rule.min_frames, rule.max_frames, rule.fps)
    sample = sampler(processor, FramePolicy(fps=1.0, min_frames=6, max_frames=8))
    assert [len(sample(info(frames, 25.0))) for frames in (100, 2500)] == [6, 8]
    assert (rule.min_frames, rule.max_frames, rule.fps) == before


def test_an_odd_number_is_left_to_the_processors_padding_or_floored_as_the_family_does(processor):
    count = len(sampler(processor)(info(63, 25.0)))
    assert count == (5 if "Qwen3" in type(processor.video_processor).__name__ else 4)


def test_frames_that_the_file_lacks_drop_out_and_the_others_keep_their_places(processor):
    sample = sampler(processor, FramePolicy(fps=25.0))
    assert sample(info(30, 25.0, readable=29)).tolist() == list(range(29))
    assert sample(info(30, 25.0, first=100)).tolist() == list(range(100, 130))


@pytest.mark.parametrize(("frames", "readable"), [(0, 0), (1, 1), (30, 1)])
def test_less_than_a_temporal_grid_is_nothing(processor, frames, readable):
    assert len(sampler(processor)(replace(info(30, 25.0), frames=frames, readable=readable))) == 0


@pytest.mark.parametrize(
    "bad",
    [{"fps": 0}, {"fps": 31}, {"min_frames": 1}, {"min_frames": 8, "max_frames": 4}, {"max_frames": 769}]
    + [{"max_pixels": 0}, {"times": "nominal"}],
)
def test_an_impossible_policy_is_named(bad):
    with pytest.raises(ValueError, match=next(reversed(bad))):
        FramePolicy(**bad)


def test_sampling_draws_nothing_from_the_global_generator(processor):
    before = torch.get_rng_state()
    sampler(processor)(info(250, 25.0))
    assert torch.equal(torch.get_rng_state(), before)
