"""Baselines for EVS: random tokens, fewer frames, and a random allocation of the tokens over frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from evs.methods.base import Ranked, Scored
from evs.methods.evs import FIRST_FRAME, FrameDelta
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


@dataclass(frozen=True)
class DirichletFrames(Scored, Ranked):
    """The tokens of a video are spread over its temporal grids by a Dirichlet draw; within a grid EVS decides.

    For training, so that a model reads any allocation; serve it by EVS. The draw depends on the features alone, so
    that a resumed run repeats it.
    """

    name: ClassVar[str] = "dirichlet_frames"

    @torch.no_grad()
    def __call__(self, features_MC: Tensor, grid: Grid) -> Tensor:
        scores_TM = FrameDelta(self.dtype)(features_MC, grid).flatten(1).float()
        rank_TM = scores_TM.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        generator = torch.Generator().manual_seed(int(1e6 * float(scores_TM[1:].nan_to_num().sum().abs())))
        share_T = torch.empty(grid.T).exponential_(generator=generator)  # a Dirichlet draw, up to its sum
        # The highest quotients give every grid its share (D'Hondt), and the rest to others where a grid is full.
        return (share_T[:, None].to(rank_TM.device) / (1 + rank_TM)).view(grid.T, grid.H, grid.W)
