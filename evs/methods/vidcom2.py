"""VidCom2 (arXiv 2505.14454) as vLLM runs it for `--video-pruning-method vidcom2`: distinctive tokens survive.

Frame compression adjustment: a temporal grid keeps more tokens if they are on average less similar to the mean of the
video. Adaptive token compression: within a grid, the tokens least similar to its mean and the video's survive. Where
the paper leaves the arithmetic open (rounding of budgets, ties), masks returned by vLLM 0.32 decided.
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

WIDTHS = tuple(2.0**k for k in range(-3, 2))  # variances of the Gaussians whose sum is the similarity
CHANNELS = 0.5  # share of the channels that is compared: those that vary least over the video
TEMPERATURE = 0.01  # of the softmax over temporal grids


@dataclass(frozen=True)
class VidCom2(Scored):
    """The count includes at least one token per temporal grid; the first grid is not kept whole.

    In half precision many scores are equal, and `torch.topk` decides which of them survive, as on the server.
    """

    name: ClassVar[str] = "vidcom2"
    needs: ClassVar[Need] = "features"

    def count(self, grid: Grid, rate: float) -> int:
        return max(grid.T, int(grid.tokens * (1 - check_rate(rate))))

    def counts(self, grids_V: Tensor, tokens_V: Tensor, rate: float) -> Tensor:
        return torch.maximum(grids_V, ((grids_V * tokens_V).double() * (1 - check_rate(rate))).long())

    def __call__(self, features_MC: Tensor, grid: Grid) -> Tensor:
        return self._unlike(features_MC, grid)[1].view(grid.T, grid.H, grid.W)

    @torch.no_grad()
    def _unlike(self, features_MC: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """([T, M] similarity to the mean of the video, [T, M] scores)."""
        with torch.autocast(features_MC.device.type, enabled=False):  # autocast would upcast, which the server does not
            x_TMC = normalize(_least_varying(self.cast(features_MC)), dim=-1).view(grid.T, grid.tokens_per_frame, -1)
            to_video_TM = _similarity(x_TMC, x_TMC.flatten(0, 1).mean(0))
            return to_video_TM, -(to_video_TM + _similarity(x_TMC, x_TMC.mean(1, keepdim=True)))

    @torch.no_grad()
    def keep(self, features_MC: Tensor, grid: Grid, rate: float) -> Tensor:
        to_video_TM, unlike_TM = self._unlike(features_MC, grid)
        with torch.autocast(features_MC.device.type, enabled=False):
            budget_T = _budgets(-to_video_TM.mean(1), grid, rate)
        keep_TM = torch.zeros_like(unlike_TM, dtype=torch.bool)
        for kept_M, scores_M, budget in zip(keep_TM, unlike_TM, budget_T.tolist()):
            kept_M[scores_M.topk(budget).indices] = True
        _adjust(keep_TM.view(-1), unlike_TM.flatten(), self.count(grid, rate))
        return keep_TM.view(grid.T, grid.H, grid.W)


def _least_varying(features_MC: Tensor) -> Tensor:
    """[M, C'] features of the channels that vary least."""
    channels = max(1, int(CHANNELS * features_MC.shape[1]))
    return features_MC[:, features_MC.var(0, unbiased=False).topk(channels, largest=False).indices]


def _similarity(x_TMC: Tensor, center: Tensor) -> Tensor:
    """[T, M] sum of Gaussians of the distance to a centre; 5, their number, at distance 0."""
    square_TM = ((x_TMC - center) ** 2).sum(-1)
    return sum((torch.exp(-square_TM / (2 * width)) for width in WIDTHS), torch.zeros_like(square_TM))


def _budgets(unique_T: Tensor, grid: Grid, rate: float) -> Tensor:
    """[T] tokens of every temporal grid, which need not add up to the count yet."""
    share_T = torch.softmax((unique_T - unique_T.max()) / TEMPERATURE, 0)
    scale_T = (1 - rate) * (1 + share_T - share_T.mean())
    return (scale_T.clamp(max=1.0) * grid.tokens_per_frame).round().long().clamp(1, grid.tokens_per_frame)


def _adjust(keep_M: Tensor, scores_M: Tensor, count: int) -> None:
    """Keep the best of the dropped tokens, or drop the worst of the kept ones, until `count` are kept; in place."""
    missing = count - int(keep_M.sum())
    candidates = (keep_M if missing < 0 else ~keep_M).nonzero().squeeze(1)
    moved = scores_M[candidates].topk(abs(missing), largest=missing > 0).indices
    keep_M[candidates[moved]] = missing > 0
