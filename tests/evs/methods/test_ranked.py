from __future__ import annotations

import pytest
import torch

from evs import FrameDelta, Grid, select
from evs.methods.baselines import DirichletFrames, EvenFrames, RandomTokens
from evs.methods.vidcom2 import VidCom2

GRID = Grid(6, 3, 2)


@pytest.mark.parametrize("scorer", [FrameDelta(), RandomTokens(1), EvenFrames()])
def test_the_first_grid_outranks_every_other(scorer):
    features = torch.randn(GRID.tokens, 8, generator=torch.Generator().manual_seed(0))
    scores = scorer(features, GRID)
    assert scores.shape == (6, 3, 2)
    assert scores[0].min() > scores[1:].max()


def test_a_changed_token_outranks_a_still_one():
    features = torch.ones(6, 3, 2, 8)
    features[4, 1, 1] = -1
    keep = select(FrameDelta()(features.flatten(0, 2), GRID), 0.75)
    assert keep[4, 1, 1] and keep[5, 1, 1] and keep.sum() == 9  # it changed, and changed back


def test_the_score_compares_originals_not_survivors():
    drift = torch.nn.functional.one_hot(torch.arange(6), 8).float()[:, None].expand(6, 6, 8)
    assert torch.equal(FrameDelta()(drift.reshape(36, 8), GRID)[1:], torch.ones(5, 3, 2))


def test_the_dtype_of_the_score_is_a_setting():
    features = torch.randn(GRID.tokens, 8)
    scores = FrameDelta("bfloat16")(features, GRID)
    assert scores.dtype == torch.bfloat16
    assert torch.equal(scores, FrameDelta()(features.bfloat16(), GRID))
    with pytest.raises(ValueError, match="'bf17' is not a torch dtype"):
        FrameDelta("bf17")


def test_autocast_does_not_upcast_the_score():
    features = torch.randn(GRID.tokens, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = FrameDelta()(features, GRID)
    assert torch.equal(inside, FrameDelta()(features, GRID))


def test_even_frames_keep_whole_grids_at_even_distances():
    keep = select(EvenFrames()(torch.zeros(8 * 6, 4), Grid(8, 3, 2)), 0.5)
    assert keep.flatten(1).all(1).nonzero().flatten().tolist() == [0, 2, 4, 6]


def test_vidcom2_gives_a_grid_that_differs_most_of_the_tokens():
    """Shares follow a softmax of temperature .01, in which a small difference in uniqueness decides."""
    generator = torch.Generator().manual_seed(0)
    scene, other = torch.randn(2, 16, 64, generator=generator)
    grids = [scene + 0.01 * torch.randn(16, 64, generator=generator) for _ in range(4)]
    grids[2] = other
    keep = VidCom2().keep(torch.cat(grids), Grid(4, 4, 4), 0.5)
    assert keep.flatten(1).sum(1).tolist() == [6, 6, 14, 6]


def test_a_random_allocation_gives_videos_different_frames_and_the_same_video_the_same():
    random = torch.Generator().manual_seed(0)
    videos = [torch.randn(GRID.tokens, 8, generator=random) for _ in range(20)]
    counts = [DirichletFrames().keep(video, GRID, 0.5).sum((1, 2)) for video in videos]
    assert len({tuple(count.tolist()) for count in counts}) > 15
    assert all(DirichletFrames().keep(video, GRID, 0.5).sum((1, 2)).equal(c) for video, c in zip(videos, counts))
    first = DirichletFrames().keep(videos[0], GRID, 0.5)
    scores = FrameDelta()(videos[0], GRID)
    for keep, score in zip(first[1:], scores[1:]):
        assert not keep.any() or keep.all() or score[keep].min() > score[~keep].max()
