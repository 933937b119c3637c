from __future__ import annotations

import pytest
import torch

from evs.methods.evs import FrameDelta
from evs.selection import select
from evs.serving.kept_masks import KeptMasks, pack, unpack
from evs.types import Grid

GRID = Grid(6, 4, 5)


def mask(rows: torch.Tensor) -> torch.Tensor:
    return select(FrameDelta("bfloat16")(rows, GRID), 0.5)


def test_near_equal_scores_of_a_video_that_is_encoded_again_keep_the_first_mask() -> None:
    random = torch.Generator().manual_seed(0)
    still = torch.randn(1, GRID.tokens_per_frame, 32, generator=random)
    rows = (still + 1e-3 * torch.randn(GRID.T, *still.shape[1:], generator=random)).flatten(0, 1)  # bf16 scores tie
    again = rows + 1e-3 * torch.randn(rows.shape, generator=random)
    assert not mask(again).equal(mask(rows))
    masks = KeptMasks()
    first = masks.recall(b"video", GRID.tokens, lambda: mask(rows))
    assert first.equal(mask(rows).flatten())
    assert masks.recall(b"video", GRID.tokens, lambda: mask(again)).equal(first)


@pytest.mark.parametrize("tokens", [1, 8, 13, 1000])
def test_a_mask_survives_its_packing(tokens) -> None:
    mask = torch.rand(tokens, generator=torch.Generator().manual_seed(tokens)) < 0.5
    assert unpack(pack(mask), tokens).equal(mask)


def test_the_video_used_longest_ago_is_forgotten() -> None:
    masks = KeptMasks(limit=2)
    asked = []

    def recall(number: int) -> None:
        masks.recall(bytes([number]), 2, lambda: asked.append(number) or torch.tensor([True, False]))

    for number in (0, 1, 0, 2, 0, 1):
        recall(number)
    assert asked == [0, 1, 2, 1] and len(masks) == 2
