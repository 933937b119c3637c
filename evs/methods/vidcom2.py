"""VidCom2 (arXiv 2505.14454) as vLLM runs it for `--video-pruning-method vidcom2`: what is unlike the rest survives.

Frame compression adjustment: a temporal grid whose tokens are on average less like the mean of the video keeps more.
Adaptive token compression: of every grid, the tokens least like its own mean and the video's survive. Written from
the paper; where it leaves the arithmetic open (rounding of budgets, ties), from masks that vLLM 0.32 returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from evs.methods.base import Need, Scored
from evs.selection import check_rate
from evs.types import Grid

WIDTHS = tuple(2.0**k for k in range(-3, 2))  # variances of the Gaussians that likeness is the sum of
CHANNELS = 0.5  # the share that is compared: those that vary least over the video
TEMPERATURE = 0.01  # of the softmax over temporal grids


@dataclass(frozen=True)
class VidCom2(Scored):
    """At least one token a temporal grid in the count; the first grid is not forced.

    In half precision equal scores are many, and which of them survive is up to `torch.topk`, as on the server.
    """

    name: ClassVar[str] = "vidcom2"
    needs: ClassVar[Need] = "features"

    def count(self, grid: Grid, rate: float) -> int:
        return max(grid.T, int(grid.tokens * (1 - check_rate(rate))))

    def counts(self, grids_V: Tensor, tokens_V: Tensor, rate: float) -> Tensor:
        return torch.maximum(grids_V, ((grids_V * tokens_V).double() * (1 - check_rate(rate))).long())

    @torch.no_grad()
    def keep(self, features_MC: Tensor, grid: Grid, rate: float) -> Tensor:
        with torch.autocast(features_MC.device.type, enabled=False):  # no upcast: the server has none
            x_TMC = normalize(_steady(self.cast(features_MC)), dim=-1).view(grid.T, grid.tokens_per_frame, -1)
            to_video_TM = _likeness(x_TMC, x_TMC.flatten(0, 1).mean(0))
            unlike_TM = -(to_video_TM + _likeness(x_TMC, x_TMC.mean(1, keepdim=True)))
            budget_T = _budgets(-to_video_TM.mean(1), grid, rate)
        keep_TM = torch.zeros_like(unlike_TM, dtype=torch.bool)
        for kept_M, scores_M, budget in zip(keep_TM, unlike_TM, budget_T.tolist()):
            kept_M[scores_M.topk(budget).indices] = True
        _settle(keep_TM.view(-1), unlike_TM.flatten(), self.count(grid, rate))
        return keep_TM.view(grid.T, grid.H, grid.W)


def _steady(features_MC: Tensor) -> Tensor:
    """[M, C'] the channels that vary least."""
    channels = max(1, int(CHANNELS * features_MC.shape[1]))
    return features_MC[:, features_MC.var(0, unbiased=False).topk(channels, largest=False).indices]


def _likeness(x_TMC: Tensor, center: Tensor) -> Tensor:
    """[T, M] sum over Gaussians of the distance to a centre, 5 where it is 0."""
    square_TM = ((x_TMC - center) ** 2).sum(-1)
    return sum((torch.exp(-square_TM / (2 * width)) for width in WIDTHS), torch.zeros_like(square_TM))


def _budgets(unique_T: Tensor, grid: Grid, rate: float) -> Tensor:
    """[T] tokens of every temporal grid before they are settled to the count."""
    share_T = torch.softmax((unique_T - unique_T.max()) / TEMPERATURE, 0)
    scale_T = (1 - rate) * (1 + share_T - share_T.mean())
    return (scale_T.clamp(max=1.0) * grid.tokens_per_frame).round().long().clamp(1, grid.tokens_per_frame)


def _settle(keep_M: Tensor, scores_M: Tensor, count: int) -> None:
    """Take the best tokens that are out, or drop the worst that are in, until `count` are kept; in place."""
    missing = count - int(keep_M.sum())
    candidates = (keep_M if missing < 0 else ~keep_M).nonzero().squeeze(1)
    moved = scores_M[candidates].topk(abs(missing), largest=missing > 0).indices
    keep_M[candidates[moved]] = missing > 0
