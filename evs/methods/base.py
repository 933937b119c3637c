"""A pruning method: how many tokens of a video survive, known before anything is decoded, and which ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from evs.selection import keep_count, keep_counts, select
from evs.types import Grid

Need = Literal["features", "pixels"]
PruneAt = Literal["merger", "input"] | int


class Method(Protocol):
    """The same object plans, trains, generates and serves. It decides without gradients."""

    @property
    def name(self) -> str: ...  # in configs/method, evs.json and, if a server has the method, --video-pruning-method
    @property
    def needs(self) -> Need: ...  # the input of `keep`
    @property
    def prune_at(self) -> PruneAt: ...  # after the vision tower, before it, or before the block of this number

    def count(self, grid: Grid, rate: float) -> int:
        """Tokens of a video that survive at `rate`."""
        ...

    def counts(self, grids_V: Tensor, tokens_V: Tensor, rate: float) -> Tensor:
        """[V] `count` of many videos at once, given their numbers of temporal grids and of tokens per grid."""
        ...

    def __call__(self, inputs_MC: Tensor, grid: Grid, /) -> Tensor:
        """[T, H, W] scores, by which `keep` prefers tokens."""
        ...

    def keep(self, inputs_MC: Tensor, grid: Grid, rate: float) -> Tensor:
        """[T, H, W] bool, `count` of them True. `inputs_MC` has one row per token, in the order (t, row, column)."""
        ...


def depth(method: Method) -> int | None:
    """The block of the vision tower before which the method drops tokens; None if it drops them after the tower."""
    if method.prune_at == "merger":
        return None
    return 0 if method.prune_at == "input" else int(method.prune_at)


class Ranked:
    """A method that keeps as many tokens as EVS does, those with the highest scores. A subclass computes the scores."""

    needs: ClassVar[Need] = "features"
    prune_at: PruneAt = "merger"
    compares_neighbours: ClassVar[bool] = False  # the scores of a temporal grid depend on it and the previous one only

    def __call__(self, inputs_MC: Tensor, grid: Grid) -> Tensor:
        """[T, H, W] scores; higher ones survive."""
        raise NotImplementedError

    def count(self, grid: Grid, rate: float) -> int:
        return keep_count(grid, rate)

    def counts(self, grids_V: Tensor, tokens_V: Tensor, rate: float) -> Tensor:
        return keep_counts(grids_V, tokens_V, rate)

    def keep(self, inputs_MC: Tensor, grid: Grid, rate: float) -> Tensor:
        return select(self(inputs_MC, grid), rate)


@dataclass(frozen=True)
class Scored:
    """A method that scores features in `dtype` ("bfloat16", ...), or in their own dtype if it is None.

    The server's dtype decides between near-equal scores: bf16 and fp32 masks of EVS agree on about 80 % of the tokens.
    """

    dtype: str | None = None
    prune_at: PruneAt = "merger"  # the only place: features are the tower's output

    def __post_init__(self) -> None:
        if self.prune_at != "merger":
            raise ValueError(f"method.prune_at={self.prune_at} needs a score of pixels: use method=pixel_delta")
        if self.dtype is not None and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"method dtype {self.dtype!r} is not a torch dtype: use bfloat16, float16 or float32")

    def cast(self, features_MC: Tensor) -> Tensor:
        return features_MC if self.dtype is None else features_MC.to(getattr(torch, self.dtype))
