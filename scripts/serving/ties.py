"""Ties: tokens that two implementations choose differently because their scores are equal up to rounding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evs.methods import Method
from evs.methods.base import Need, PruneAt, Ranked
from evs.types import Grid

UNITS = 4  # in the last place of 1 - cosine, by which the scores of two implementations may differ


@dataclass
class ServersChoice:
    """A pruning method that breaks ties as the server did: between tokens whose scores are equal up to rounding.

    It serves one prompt at one rate, whose videos come in order. `kept` holds the tokens that the server kept of each
    video. Only methods that rank floating-point scores have ties.
    """

    kept: Sequence[Sequence[int]]
    method: Method
    ties: int = 0  # tokens that the server kept instead of ours
    gap: float = 0.0  # largest difference of score between the server's tokens and ours that was not a tie
    others: int = 0  # tokens that the server kept and ours did not, without a tie
    _videos: Iterator[Sequence[int]] = field(init=False)

    def __post_init__(self) -> None:
        self._videos = iter(self.kept)

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def needs(self) -> Need:
        return self.method.needs

    @property
    def prune_at(self) -> PruneAt:
        return self.method.prune_at

    def count(self, grid: Grid, rate: float) -> int:
        return self.method.count(grid, rate)

    def counts(self, grids_V: Tensor, tokens_V: Tensor, rate: float) -> Tensor:
        return self.method.counts(grids_V, tokens_V, rate)

    def __call__(self, inputs_MC: Tensor, grid: Grid) -> Tensor:
        return self.method(inputs_MC, grid)

    @torch.no_grad()
    def keep(self, inputs_MC: Tensor, grid: Grid, rate: float) -> Tensor:
        ours = self.method.keep(inputs_MC, grid, rate)
        if (kept := next(self._videos, None)) is None:
            return ours
        if len(kept) != ours.sum() or max(kept) >= ours.numel():  # another grid: lengths differ too
            return ours
        theirs = torch.zeros_like(ours)
        theirs.view(-1)[torch.tensor(kept, device=theirs.device)] = True
        if theirs.equal(ours):
            return ours
        moved = int((theirs & ~ours).sum())
        if isinstance(self.method, Ranked):
            scores_THW = self.method(inputs_MC, grid)
            gap = float(scores_THW[ours & ~theirs].max() - scores_THW[theirs & ~ours].min())
            if scores_THW.is_floating_point() and gap <= UNITS * torch.finfo(scores_THW.dtype).eps:
                self.ties += moved
                return theirs
            self.gap = max(self.gap, gap)
        self.others += moved
        return ours
