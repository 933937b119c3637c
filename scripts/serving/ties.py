"""Tokens that two implementations choose differently because their scores are equal but for rounding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from evs.methods.base import Ranked
from evs.methods.evs import FrameDelta
from evs.select import select
from evs.types import Grid

UNITS = 4  # in the last place of 1 - cosine, by which the scores of two implementations may differ


@dataclass
class ServersChoice(Ranked):
    """The score of EVS, and between tokens at the cut whose scores are equal but for rounding, the server's choice.

    A method for one prompt at one rate: its videos come in order, `kept` holds what the server kept of each.
    """

    kept: Sequence[Sequence[int]]
    rate: float
    name: ClassVar[str] = FrameDelta.name
    ties: int = 0  # tokens that the server kept in place of ours
    gap: float = 0.0  # the largest between its tokens and ours, where its choice was no tie
    _videos: Iterator[Sequence[int]] = field(init=False)

    def __post_init__(self) -> None:
        self._videos = iter(self.kept)

    @torch.no_grad()
    def __call__(self, features_MC: Tensor, grid: Grid) -> Tensor:
        scores_THW = FrameDelta()(features_MC, grid)
        if (kept := next(self._videos, None)) is None:
            return scores_THW
        ours = select(scores_THW, self.rate)
        theirs = torch.zeros_like(ours)
        theirs.view(-1)[torch.tensor(kept, device=theirs.device)] = True
        if theirs.equal(ours) or theirs.sum() != ours.sum():
            return scores_THW
        gap = float(scores_THW[ours & ~theirs].max() - scores_THW[theirs & ~ours].min())
        if gap > UNITS * torch.finfo(scores_THW.dtype).eps:
            self.gap = max(self.gap, gap)
            return scores_THW
        self.ties += int((theirs & ~ours).sum())
        return theirs.to(scores_THW)
