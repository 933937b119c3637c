"""A video is brought to a number of tokens by the family's own sampling and resizing, or the limit is named."""

from __future__ import annotations

import pytest
from PIL import Image

from data.encoding.encoder import Encoder
from data.encoding.reduction import REDUCTIONS, OutOfReach, Reduction
from data.media.container import probe
from data.media.frame_list import probe_frames
from data.media.frames import FramePolicy
from data.types import FrameList, ImageRef, Sample, Turn, VideoRef, VideoSettings
from train.model import encoder_of

POLICY = FramePolicy(fps=4.0, max_pixels=224 * 224, max_frames=16)


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl", "glm4v", "nemotron_h_omni"])
def encoder(request, checkpoint) -> Encoder:
    policy = FramePolicy(fps=4.0, max_frames=16) if request.param == "glm4v" else POLICY
    return encoder_of(checkpoint(request.param), policy)


def reduction(encoder: Encoder, ref: VideoRef) -> Reduction:
    header = probe_frames(ref, ref.content) if isinstance(ref.content, FrameList) else probe(ref)
    return Reduction(encoder, ref, header)


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_a_reduced_video_encodes_to_as_many_tokens_as_it_says_and_no_more_than_the_budget(encoder, clips, kind):
    video = reduction(encoder, VideoRef(str(clips[0])))
    whole = video.whole
    reduced = REDUCTIONS[kind](video, whole.tokens // 3)
    sample = Sample("s", (Turn("user", (reduced.ref, "What?")), Turn("assistant", ("yes",))))
    (grid,) = encoder.encode(sample).video_grid_thw_V3.tolist()
    assert grid[0] == reduced.grids and grid[0] * grid[1] * grid[2] == reduced.tokens * encoder.merge**2
    assert whole.tokens // 5 < reduced.tokens <= whole.tokens // 3
    smaller = reduced.tokens // reduced.grids < whole.tokens // whole.grids
    assert reduced.grids < whole.grids or kind == "pixels"
    assert smaller == (kind != "frames") or encoder.policy.max_pixels is None  # GLM has no limit for a frame


@pytest.fixture
def qwen(checkpoint) -> Encoder:
    return encoder_of(checkpoint("qwen2_5_vl"), POLICY)


def test_a_reduction_below_the_minimum_of_frames_or_the_smallest_frame_is_out_of_reach(qwen, clips):
    video = reduction(qwen, VideoRef(str(clips[0])))
    with pytest.raises(OutOfReach, match="fewer than min_frames=4"):
        video.frames(video.whole.tokens // video.whole.grids)
    with pytest.raises(OutOfReach, match="below the smallest frame"):
        video.pixels(video.whole.grids - 1)


def test_a_part_of_a_video_is_reduced_within_its_part(qwen, clips):
    video = reduction(qwen, VideoRef(str(clips[0]), start=1.0, end=3.0))
    reduced = video.frames(video.whole.tokens // 2)
    assert (video.whole.grids, reduced.grids) == (4, 2) and (reduced.ref.start, reduced.ref.end) == (1.0, 3.0)


def test_a_row_that_names_its_number_of_frames_gets_fewer(qwen, clips):
    video = reduction(qwen, VideoRef(str(clips[0]), settings=VideoSettings(nframes=12)))
    assert (video.whole.grids, video.frames(video.whole.tokens // 2).grids) == (6, 3)


def test_a_list_of_pictures_keeps_some_of_them_at_their_times(qwen, tmp_path):
    pictures = tuple(ImageRef(str(tmp_path / f"{i}.png")) for i in range(8))
    for picture in pictures:
        Image.effect_noise((128, 128), 60).save(picture.path)
    video = reduction(qwen, VideoRef(str(tmp_path), content=FrameList(pictures, (0, 1, 2, 3, 5, 7, 9, 11))))
    content = video.frames(video.whole.tokens // 2).ref.content
    assert isinstance(content, FrameList)
    assert content.pictures == (pictures[0], pictures[2], pictures[5], pictures[7]) and content.times == (0, 2, 7, 11)


def test_a_video_of_two_grids_that_cannot_be_split_evenly_is_out_of_reach(qwen, clips):
    video = reduction(qwen, VideoRef(str(clips[0]), start=0.0, end=1.0))
    assert video.whole.grids == 2
    with pytest.raises(OutOfReach, match="fewer than min_frames=4"):
        video.even(int(0.8 * video.whole.tokens))
