"""Scores of pixels: integers that no dtype or device can round, out of what the processor has normalised."""

from __future__ import annotations

import pytest
import torch

from evs import Grid
from evs.families.mrope.fast_tower import levels_of
from evs.methods.pixels import PixelDelta

GRID = Grid(5, 2, 3)
NORMAL = ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))


def test_before_tower_scores_are_sums_of_absolute_differences():
    pixels = torch.randint(0, 256, (GRID.tokens, 24), dtype=torch.uint8)
    whole = pixels.long().view(5, 2, 3, 24)
    scores = PixelDelta()(pixels, GRID)
    assert torch.equal(scores[1:].long(), (whole[1:] - whole[:-1]).abs().sum(-1))
    assert not scores.is_floating_point() and (scores[0] > scores[1:].max()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_before_tower_pixels_come_back_from_normalisation_in_every_dtype(dtype):
    levels = torch.arange(256, dtype=torch.uint8).repeat(9, 1)[:, : 3 * 84]
    mean, std = (torch.tensor(values).repeat_interleave(84) for values in NORMAL)
    assert torch.equal(levels_of(((levels / 255 - mean) / std).to(dtype), NORMAL), levels)


def test_features_and_unknown_places_are_one_line():
    with pytest.raises(ValueError, match="scores uint8 pixels of merge units, not float32 features: give it adapter"):
        PixelDelta().keep(torch.randn(GRID.tokens, 8), GRID, 0.5)
    for place in ("tower", -1, True, 1.5):
        with pytest.raises(ValueError, match="use merger, input or the number of a block"):
            PixelDelta(place)
    with pytest.raises(ValueError, match=r"give batch\.video_normal"):
        levels_of(torch.zeros(4, 6), None)
