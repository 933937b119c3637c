"""Baselines for EVS: random tokens, and fewer frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from evs.methods.base import Ranked
from evs.methods.evs import FIRST_FRAME
from evs.types import Grid


@dataclass(frozen=True)
class RandomTokens(Ranked):
    """The first temporal grid and random tokens of the others, the same ones for all videos of the same grid."""

    seed: int = 0

    name: ClassVar[str] = "random_tokens"

    @torch.no_grad()
    def __call__(self, features_MC: Tensor, grid: Grid) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        scores = torch.rand(grid.T, grid.H, grid.W, generator=generator)
        scores[0] = FIRST_FRAME
        return scores.to(features_MC.device)


@dataclass(frozen=True)
class EvenFrames(Ranked):
    """Whole temporal grids at even distances, as if fewer frames had been sampled."""

    name: ClassVar[str] = "even_frames"

    @torch.no_grad()
    def __call__(self, features_MC: Tensor, grid: Grid) -> Tensor:
        # Bit-reversed order: every prefix of it is spread about evenly over time.
        bits = max(1, (grid.T - 1).bit_length())
        rank = [int(f"{t:0{bits}b}"[::-1], 2) for t in range(grid.T)]
        scores = -torch.tensor(rank, dtype=torch.float32, device=features_MC.device)
        return scores.view(-1, 1, 1).expand(grid.T, grid.H, grid.W)
