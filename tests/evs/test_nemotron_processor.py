"""Nemotron's processor in our terms gives what the library's own gives, and costs what it will give."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoProcessor

from data.encoding.size_prediction import predict_size
from data.media.container import probe
from data.media.frames import FramePolicy
from data.types import Sample, Turn, VideoRef, VideoSettings
from train.model import encoder_of

FAMILY = "nemotron_h_omni"


@pytest.fixture
def sample(clips):
    return Sample("x", (Turn("user", (VideoRef(str(clips[0])), "Which color?")), Turn("assistant", ("red",))))


@pytest.mark.parametrize("frames", [7, 8])
def test_tokens_and_patches_are_the_library_s(checkpoint, sample, frames):
    processor = AutoProcessor.from_pretrained(checkpoint(FAMILY))
    encoder = encoder_of(str(checkpoint(FAMILY)), FramePolicy(max_frames=frames))
    got, (clip,) = encoder.encode(sample), encoder.read(sample)[0]
    metadata = {"fps": clip.fps, "frames_indices": clip.frame_indices_T.tolist(), "total_num_frames": clip.frames}
    video = torch.from_numpy(clip.frames_THWC).permute(0, 3, 1, 2)
    theirs = processor(text=encoder.chat(sample), videos=[video], video_metadata=[metadata], return_tensors="pt")
    assert got.input_ids_N.tolist() == theirs.input_ids[0].tolist()
    t, h, w = got.video_grid_thw_V3[0].tolist()
    tubelets = got.pixel_values_videos.view(t, h, w, 6, 16, 16).permute(0, 3, 1, 4, 2, 5)
    assert torch.equal(tubelets.reshape(1, t, 6, 16 * h, 16 * w), theirs.pixel_values_videos)


def test_the_cost_is_that_of_the_encoding_and_the_empty_thought_is_not_labelled(checkpoint, sample):
    encoder = encoder_of(str(checkpoint(FAMILY)), FramePolicy(max_frames=7))
    got, cost = encoder.encode(sample), predict_size(encoder, sample, {part: probe(part) for part in sample.media})
    ((grids, tokens),) = cost.videos
    assert (cost.fixed + grids * tokens, cost.patches) == (len(got.input_ids_N), len(got.pixel_values_videos))
    assert encoder.processor.tokenizer.decode(got.labels_N[got.labels_N >= 0]) == "red<|im_end|>"


@pytest.mark.parametrize(("name", "value"), [("min_pixels", 50000), ("total_pixels", 50000), ("max_pixels", 512)])
def test_sizes_that_its_frames_cannot_have_are_refused(checkpoint, name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        encoder_of(str(checkpoint(FAMILY)), FramePolicy(**{name: value}))


@pytest.mark.parametrize("name", ["nframes", "min_frames"])
def test_settings_of_one_video_that_its_server_does_not_take_are_refused(checkpoint, sample, name):
    video = replace(sample.media[0], settings=VideoSettings(**{name: 6}))
    asked = replace(sample, turns=(Turn("user", (video, "Which color?")), sample.turns[1]))
    with pytest.raises(ValueError, match=f"{name}=6 cannot be requested from this family's server: use fps"):
        encoder_of(str(checkpoint(FAMILY)), FramePolicy(max_frames=7)).encode(asked)
