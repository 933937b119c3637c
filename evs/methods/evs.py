"""Efficient Video Sampling (arXiv 2510.14624) as servers run it: what changed since the previous temporal grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from evs.methods.base import Ranked
from evs.types import Grid

FIRST_FRAME = 255.0  # above every dissimilarity (at most 2), so that the first grid always survives


@dataclass(frozen=True)
class FrameDelta(Ranked):
    """How much a token differs from the same cell of the previous temporal grid, `1 - cosine similarity`.

    `dtype` ("bfloat16", "float32", ...) is the dtype in which the server will score, since the order of near-equal
    scores is decided by rounding: bf16 and fp32 masks agree on about 80 % of the tokens. None scores in the dtype
    that the features have.
    """

    dtype: str | None = None

    name: ClassVar[str] = "evs"

    def __post_init__(self) -> None:
        if self.dtype is not None and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"method dtype {self.dtype!r} is no torch dtype: use bfloat16, float16 or float32")

    @torch.no_grad()
    def __call__(self, features_MC: Tensor, grid: Grid) -> Tensor:
        if self.dtype is not None:
            features_MC = features_MC.to(getattr(torch, self.dtype))
        x = features_MC.view(grid.T, grid.H, grid.W, -1)
        with torch.autocast(x.device.type, enabled=False):  # no upcast: the server has none
            change = 1 - cosine_similarity(x[1:], x[:-1], dim=-1)
        return torch.cat([torch.full_like(x[:1, ..., 0], FIRST_FRAME), change])
