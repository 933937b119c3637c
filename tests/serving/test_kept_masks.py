from __future__ import annotations

import pytest
import torch

from evs.methods.evs import FrameDelta
from evs.selection import select
from evs.serving.kept_masks import KeptMasks, fingerprint
from evs.types import Grid

GRID = Grid(6, 4, 5)


def mask(rows: torch.Tensor) -> torch.Tensor:
    return select(FrameDelta("bfloat16")(rows, GRID), 0.5)


def test_near_equal_scores_of_a_video_that_is_encoded_again_keep_the_first_mask() -> None:
    random = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (GRID.tokens, 48), generator=random, dtype=torch.uint8)
    still = torch.randn(1, GRID.tokens_per_frame, 32, generator=random)
    rows = (still + 1e-3 * torch.randn(GRID.T, *still.shape[1:], generator=random)).flatten(0, 1)  # bf16 scores tie
    again = rows + 1e-3 * torch.randn(rows.shape, generator=random)
    assert not mask(again).equal(mask(rows))
    masks, shape = KeptMasks(), (GRID.T, GRID.H, GRID.W)
    first = masks.recall(video, shape, lambda: mask(rows))
    assert first.equal(mask(rows))
    assert masks.recall(video.clone(), shape, lambda: mask(again)).equal(first)


def test_every_byte_and_the_shape_tell_videos_apart() -> None:
    masks = KeptMasks()
    video = torch.zeros(3, 70_001, dtype=torch.uint8)
    for index in (0, 70_000, 3 * 70_001 - 1):
        other = video.clone()
        other.view(-1)[index] = 1
        assert fingerprint(other) != fingerprint(video)
    masks.recall(video, (2, 3), lambda: torch.ones(6, dtype=torch.bool))
    assert not masks.recall(video, (3, 2), lambda: torch.zeros(6, dtype=torch.bool)).any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_a_fingerprint_follows_from_the_content_alone(dtype) -> None:
    content = torch.arange(6 * 8).reshape(8, 6).to(dtype)
    assert fingerprint(content) == fingerprint(content.T.contiguous().T)
    assert fingerprint(content) != fingerprint(content.flip(0))


def test_the_video_used_longest_ago_is_forgotten() -> None:
    masks, videos = KeptMasks(limit=2), torch.eye(3, dtype=torch.uint8)
    asked = []

    def recall(number: int) -> None:
        masks.recall(videos[number], (2,), lambda: asked.append(number) or torch.tensor([True, False]))

    for number in (0, 1, 0, 2, 0, 1):
        recall(number)
    assert asked == [0, 1, 2, 1] and len(masks) == 2
