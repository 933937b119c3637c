"""Efficient Video Sampling (arXiv 2510.14624) as servers run it: keep tokens that changed since the previous grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from evs.methods.base import Ranked, Scored
from evs.types import Grid

FIRST_FRAME = 255.0  # above every dissimilarity (at most 2), so that the first grid always survives


@dataclass(frozen=True)
class FrameDelta(Scored, Ranked):
    """How much a token differs from the same cell of the previous temporal grid, `1 - cosine similarity`."""

    name: ClassVar[str] = "evs"
    compares_neighbours: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(self, features_MC: Tensor, grid: Grid) -> Tensor:
        x = self.cast(features_MC).view(grid.T, grid.H, grid.W, -1)
        with torch.autocast(x.device.type, enabled=False):  # autocast would upcast, which the server does not
            change = 1 - cosine_similarity(x[1:], x[:-1], dim=-1)
        return torch.cat([torch.full_like(x[:1, ..., 0], FIRST_FRAME), change])
