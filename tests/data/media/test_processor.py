"""A policy in the terms of a processor's own configuration: files carry it, and a fresh processor does the same."""

import pytest
import torch
from transformers import AutoVideoProcessor

from data.media.frames import FramePolicy
from data.media.processor import CALL, configured, frame_patches

POLICIES = [
    FramePolicy(),
    FramePolicy(min_pixels=56 * 56, max_pixels=112 * 112),
    FramePolicy(min_pixels=32 * 32, max_pixels=448 * 448, total_pixels=16 * 112 * 112),
    FramePolicy(max_pixels=64 * 64),
]


def grid(processor, frames, *, side=(360, 480)):
    return processor(torch.zeros(frames, 3, *side, dtype=torch.uint8), **CALL)["video_grid_thw"][0].tolist()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("frames", [4, 7, 64])
def test_a_configuration_that_was_saved_gives_the_same_grids(processor, tmp_path, policy, frames):
    ours = configured(processor.video_processor, policy)
    ours.save_pretrained(tmp_path)
    assert grid(AutoVideoProcessor.from_pretrained(tmp_path), frames) == grid(ours, frames)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("frames", [4, 7, 64])
def test_patches_are_known_before_anything_is_resized(processor, policy, frames):
    ours = configured(processor.video_processor, policy)
    t, h, w = grid(ours, frames)
    assert frame_patches(ours, frames, 360, 480) == h * w and t == -(-frames // 2)


@pytest.mark.parametrize("frames", [4, 16])
def test_the_largest_frame_is_bounded_in_every_family(processor, frames):
    ours = configured(processor.video_processor, FramePolicy(min_pixels=56 * 56, max_pixels=112 * 112))
    _, h, w = grid(ours, frames)
    assert 0.5 * 112 * 112 < h * w * ours.patch_size**2 <= 112 * 112


def test_total_pixels_bound_the_whole_video(processor):
    ours = configured(processor.video_processor, POLICIES[2])
    _, h, w = grid(ours, 16, side=(480, 480))
    assert 0.5 * 112 * 112 < h * w * ours.patch_size**2 <= 112 * 112


def test_without_limits_the_checkpoints_own_size_stands(processor):
    own = processor.video_processor.size
    ours = configured(processor.video_processor, FramePolicy())
    assert {key: ours.size[key] for key in ("shortest_edge", "longest_edge")} == {
        key: own[key] for key in ("shortest_edge", "longest_edge")
    }
    assert ours.cap_pixels_per_frame is False and processor.video_processor.size is own
