from __future__ import annotations

import pytest
import torch

from evs.positions import frame_boxes, frame_positions, rope_positions
from evs.types import Grid


@pytest.mark.parametrize("grid", [Grid(1, 1, 1), Grid(5, 3, 4), Grid(4, 5, 2)], ids=str)
def test_positions_of_frames_at_once_equal_those_of_one_frame_after_another(grid) -> None:
    times = torch.randint(0, 6, (grid.T + 1,), generator=torch.Generator().manual_seed(0)).tolist()
    frame = [True] * grid.tokens_per_frame
    visual = torch.tensor([token for time in times[:-1] for token in [*[False] * time, *frame]] + [False] * times[-1])
    positions, following = frame_positions(visual, grid)
    expected, end = rope_positions(visual, frame_boxes(grid))
    assert positions.equal(expected) and following == end
