"""How many tokens of a video survive, by the server's rule, and which ones.

Source: EVS (arXiv 2510.14624) as vLLM, SGLang and TensorRT-LLM run it. The count is Python integers first, then
float64, then truncation; changing the order of the factors changes the answer for some (T, rate).
"""

from __future__ import annotations

import torch
from torch import Tensor

from evs.types import Grid


def check_rate(rate: float) -> float:
    """The rate itself, a fraction *removed* in [0, 1). Raises ValueError otherwise."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"pruning rate {rate} is outside [0, 1): give the fraction of video tokens to remove")
    return float(rate)


def keep_count(grid: Grid, rate: float) -> int:
    """Tokens of a video that survive at `rate`: at least one temporal grid, at most all."""
    tokens = grid.tokens_per_frame
    return max(tokens, int(tokens * grid.T * (1 - check_rate(rate))))


def keep_counts(grids_V: Tensor, tokens_V: Tensor, rate: float) -> Tensor:
    """[V] `keep_count` of many videos at once, given their numbers of temporal grids and of tokens per grid."""
    kept_V = (tokens_V * grids_V).double() * (1 - check_rate(rate))
    return torch.maximum(tokens_V, kept_V.long())


def select(scores_THW: Tensor, rate: float) -> Tensor:
    """[T, H, W] bool with exactly `keep_count` True: the highest scores, ties to the lower flat index.

    Equal scores, of which bf16 has many, are decided by the order (t, row, column): the sort is stable.
    """
    kept = keep_count(Grid(*scores_THW.shape), rate)
    order = torch.argsort(scores_THW.flatten(), descending=True, stable=True)
    keep = torch.zeros(scores_THW.numel(), dtype=torch.bool, device=scores_THW.device)
    keep[order[:kept]] = True
    return keep.view(scores_THW.shape)
