"""Scorers: one video's features -> one score per token; the highest scores survive.

A scorer reads [M, C] features of one video in raster order (t, row, column) and returns [T, H, W] scores. It runs
without gradients: which tokens survive is a decision, not a differentiable quantity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from evs.types import Grid

FIRST_FRAME = 255.0  # above every dissimilarity (at most 2), so that the first grid always survives


class Scorer(Protocol):
    def __call__(self, features_MC: Tensor, grid: Grid) -> Tensor: ...


@dataclass(frozen=True)
class FrameDelta:
    """EVS: how much a token differs from the same cell of the previous temporal grid, `1 - cosine similarity`.

    `dtype` ("bfloat16", "float32", ...) is the dtype in which the server will score, since the order of near-equal
    scores is decided by rounding: bf16 and fp32 masks agree on about 80 % of the tokens. None scores in the dtype
    that the features have.
    """

    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"scorer dtype {self.dtype!r} is no torch dtype: use bfloat16, float16 or float32")

    @torch.no_grad()
    def __call__(self, features_MC: Tensor, grid: Grid) -> Tensor:
        if self.dtype is not None:
            features_MC = features_MC.to(getattr(torch, self.dtype))
        x = features_MC.view(grid.T, grid.H, grid.W, -1)
        with torch.autocast(x.device.type, enabled=False):  # no upcast: the server has none
            change = 1 - cosine_similarity(x[1:], x[:-1], dim=-1)
        return torch.cat([torch.full_like(x[:1, ..., 0], FIRST_FRAME), change])


@dataclass(frozen=True)
class RandomTokens:
    """Baseline: the first grid, then tokens at random, the same ones whenever a video has the same grid."""

    seed: int = 0

    @torch.no_grad()
    def __call__(self, features_MC: Tensor, grid: Grid) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        scores = torch.rand(grid.T, grid.H, grid.W, generator=generator)
        scores[0] = FIRST_FRAME
        return scores.to(features_MC.device)


@dataclass(frozen=True)
class EvenFrames:
    """Baseline: whole temporal grids at even distances, as if fewer frames had been sampled."""

    @torch.no_grad()
    def __call__(self, features_MC: Tensor, grid: Grid) -> Tensor:
        # Bit-reversed order of time: every prefix of it is spread about evenly.
        bits = max(1, (grid.T - 1).bit_length())
        rank = [int(f"{t:0{bits}b}"[::-1], 2) for t in range(grid.T)]
        scores = -torch.tensor(rank, dtype=torch.float32, device=features_MC.device)
        return scores.view(-1, 1, 1).expand(grid.T, grid.H, grid.W)
