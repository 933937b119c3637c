"""A pruning method: how many tokens of a video survive, known before anything is decoded, and which ones."""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

from torch import Tensor

from evs.select import keep_count, keep_counts, select
from evs.types import Grid

Need = Literal["features", "pixels"]


class Method(Protocol):
    """One object for planning, training, generation and serving. It decides without gradients."""

    @property
    def name(self) -> str: ...  # in configs/method, evs.json and, where a server knows it, --video-pruning-method
    @property
    def needs(self) -> Need: ...  # what `keep` reads

    def count(self, grid: Grid, rate: float) -> int:
        """Tokens of a video that survive at `rate`."""
        ...

    def counts(self, grids_V: Tensor, tokens_V: Tensor, rate: float) -> Tensor:
        """[V] `count` of many videos at once, given their temporal grids and the tokens of one."""
        ...

    def keep(self, seen_MC: Tensor, grid: Grid, rate: float) -> Tensor:
        """[T, H, W] bool, exactly `count` True. `seen_MC`: one row a token in raster order (t, row, column)."""
        ...


class Ranked:
    """The count of EVS, and of one video's tokens those that score highest. A subclass scores."""

    needs: ClassVar[Need] = "features"

    def __call__(self, seen_MC: Tensor, grid: Grid) -> Tensor:
        """[T, H, W] scores."""
        raise NotImplementedError

    def count(self, grid: Grid, rate: float) -> int:
        return keep_count(grid, rate)

    def counts(self, grids_V: Tensor, tokens_V: Tensor, rate: float) -> Tensor:
        return keep_counts(grids_V, tokens_V, rate)

    def keep(self, seen_MC: Tensor, grid: Grid, rate: float) -> Tensor:
        return select(self(seen_MC, grid), rate)
