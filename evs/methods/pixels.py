"""EVS as in its paper (arXiv 2510.14624), which scores RGB pixels; it keeps as many tokens as servers do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from evs.methods.base import Need, PruneAt, Ranked
from evs.types import Grid


@dataclass(frozen=True)
class PixelDelta(Ranked):
    """Scores a token by the sum of absolute differences between its pixels and those of the previous temporal grid.

    The sum is of integers, so that every device and dtype selects the same tokens. It does not need the vision tower,
    so tokens can be dropped before it: `prune_at` is "merger" (after the tower, as servers do), "input", or the number
    of the first block that does not process them.
    """

    prune_at: PruneAt = "merger"

    name: ClassVar[str] = "pixel_delta"
    needs: ClassVar[Need] = "pixels"

    def __post_init__(self) -> None:
        block = isinstance(self.prune_at, int) and not isinstance(self.prune_at, bool) and self.prune_at >= 0
        if self.prune_at not in ("merger", "input") and not block:
            raise ValueError(f"method.prune_at={self.prune_at} is unknown: use merger, input or the number of a block")

    def __call__(self, pixels_MC: Tensor, grid: Grid) -> Tensor:
        if pixels_MC.dtype != torch.uint8:
            dtype = str(pixels_MC.dtype).removeprefix("torch.")
            raise ValueError(
                f"method={self.name} scores uint8 pixels of merge units, not {dtype} features: give it "
                "adapter.pixels(batch), or use method=evs"
            )
        x = pixels_MC.view(grid.T, grid.H, grid.W, -1)
        # |a - b| without leaving uint8.
        change = (torch.maximum(x[1:], x[:-1]) - torch.minimum(x[1:], x[:-1])).sum(-1, dtype=torch.int32)
        first = torch.full_like(x[:1, ..., 0], torch.iinfo(torch.int32).max, dtype=torch.int32)
        return torch.cat([first, change])
