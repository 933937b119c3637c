"""The vision tower shared out over the ranks of a sequence group, by temporal grids, which attend to themselves alone.

Every rank encodes a contiguous range of the temporal grids of a batch. A method that compares a grid with the one
before it scores the own grids, given the features of the grid before the first; the ranks then exchange only scores.
For other methods that score features they exchange all features, without gradients. Finally each rank embeds its slice
of the surviving tokens and receives the features of those that other ranks have encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from evs.families.base import Adapter, MediaBatch, filled, rows_in_prompt_order
from evs.methods.base import Method, Ranked
from evs.pruning import keep_mask, prune
from evs.sequence_parallel import SequenceGroup
from evs.types import DecoderInputs, Grid


class Scores(Ranked):
    """A method whose inputs are the scores."""

    name: ClassVar[str] = "scores"

    def __call__(self, inputs_MC: Tensor, grid: Grid) -> Tensor:
        return inputs_MC.view(grid.T, grid.H, grid.W)


def gathers_features(method: Method) -> bool:
    """True if a method scores the features of all media on every rank."""
    return method.needs == "features" and not (isinstance(method, Ranked) and method.compares_neighbours)


@dataclass(frozen=True)
class SharedMedia:
    """The media of a batch. Grids (G) and tokens (U) are counted in the order of the tower: images, then videos."""

    adapter: Adapter
    batch: MediaBatch
    group: SequenceGroup

    def keep_mask(self, embedded: DecoderInputs, rates_V: Sequence[float], method: Method) -> Tensor:
        """The mask that `evs.pruning.keep_mask` gives for features of all media."""
        grids = self.adapter.grids(self.batch)
        if not any(rates_V):
            nothing = embedded.embeds_ND.new_zeros(sum(grid.tokens for grid in grids), 1)
            return keep_mask(embedded, nothing, grids, rates_V, method)
        if method.needs == "pixels":
            keep_N = keep_mask(embedded, self.adapter.pixels(self.batch), grids, rates_V, method)
            return self.group.broadcast_mask(keep_N)
        features_UC = torch.cat(self._levels, -1).detach()
        if gathers_features(method):
            features_UC = self.group.concatenated(features_UC, self._counts(self._bounds))
            keep_N = keep_mask(embedded, features_UC[self._first_G[self._images] :], grids, rates_V, method)
            return self.group.broadcast_mask(keep_N)
        assert isinstance(method, Ranked)
        return keep_mask(embedded, self._scores(features_UC, method), grids, rates_V, Scores())

    def prune(self, embedded: DecoderInputs, keep_N: Tensor, before: int | None) -> DecoderInputs:
        """The kept tokens of the prompts; the others are dropped before block `before` of the tower.

        `embeds_ND` and `deepstack` are those of this rank's slice only.
        """
        kept_U = keep_N.new_empty(self._first_G[-1])
        kept_U[rows_in_prompt_order(embedded)] = keep_N[embedded.visual_N]
        kept_U = kept_U.cpu()
        kept_before_G = pad(kept_U.cumsum(0), (1, 0))[self._first_G].tolist()
        bounds = self._bounds
        if before == 0:
            bounds = _bounds([end - begin for begin, end in pairwise(kept_before_G)], self.group.size)
        counts = [kept_before_G[end] - kept_before_G[begin] for begin, end in pairwise(bounds)]
        begin, end = bounds[self.group.rank : self.group.rank + 2]
        own_U = kept_U[self._first_G[begin] : self._first_G[end]]
        if before is None:
            levels = [level[own_U.to(level.device)] for level in self._levels]
        elif not own_U.any():
            levels = [level[:0] for level in self.adapter.tower(self._part(0, 0))]
        else:
            levels = list(self.adapter.tower(self._part(begin, end), own_U, before))
        x = prune(embedded, keep_N)
        rows = self.group.exchange_rows(torch.cat(levels, -1), counts, self._wanted(x))
        own = filled(self._own_slice(embedded, keep_N), rows.split([level.shape[1] for level in levels], dim=-1))
        return replace(x, embeds_ND=own.embeds_ND, deepstack=own.deepstack)

    def _own_slice(self, embedded: DecoderInputs, keep_N: Tensor) -> DecoderInputs:
        """The kept tokens of this rank's slice, with embeddings."""
        kept, own_N = keep_N.nonzero().squeeze(1), torch.zeros_like(keep_N)
        part = self.group.own_slice(len(kept))
        own_N[kept[part.begin : part.end]] = True
        ids = self.batch.input_ids_N.to(own_N.device)[own_N]
        return replace(prune(embedded, own_N), embeds_ND=self.adapter.model.get_input_embeddings()(ids))

    def _wanted(self, x: DecoderInputs) -> list[Tensor]:
        """The rows, ascending in the order of the tower, of the visual tokens of every rank's slice of `x`."""
        visual_N, rows_M = x.visual_N.cpu(), rows_in_prompt_order(x).cpu()
        counts = [int(visual_N[part.begin : part.end].sum()) for part in self.group.slices(len(visual_N))]
        return [rows.sort().values for rows in rows_M.split(counts)]

    @cached_property
    def _levels(self) -> list[Tensor]:
        """The rows of the own tokens: of the merger and of every deepstack level."""
        begin, end = self._bounds[self.group.rank : self.group.rank + 2]
        own = self._first_G[end] - self._first_G[begin]  # without media, the tower encodes a blank patch
        return [level[:own] for level in self.adapter.tower(self._part(begin, end))]

    def _scores(self, features_UC: Tensor, method: Ranked) -> Tensor:
        """[M, 1] scores of the tokens of all videos, from the features of the own tokens."""
        rank, media_G = self.group.rank, self._media_G.tolist()
        own, lengths = media_G[slice(*self._bounds[rank : rank + 2])], self._tokens_G.tolist()
        last = [lengths[end - 1] if end > begin else 0 for begin, end in pairwise(self._bounds)]
        borders = self.group.concatenated(features_UC[len(features_UC) - last[rank] :], last)
        before = borders[: sum(last[:rank])]  # it ends with the grid before the first own one
        scores, row, number = [features_UC.new_zeros(0)], 0, self._bounds[rank]
        for medium in dict.fromkeys(own):
            grids, cells = own.count(medium), lengths[number]
            rows = features_UC[row : row + grids * cells]
            row, continued = row + len(rows), number > 0 and media_G[number - 1] == medium
            if medium >= self._images:
                x = torch.cat([before[len(before) - cells :], rows]) if continued else rows
                scores.append(method(x, Grid(grids + continued, 1, cells))[int(continued) :].flatten())
            number += grids
        counts = [sum(lengths[max(begin, self._images) : end]) for begin, end in pairwise(self._bounds)]
        # float32 keeps the order and the ties of every lower precision.
        return self.group.concatenated(torch.cat([part.float() for part in scores])[:, None], counts)

    def _part(self, begin: int, end: int) -> MediaBatch:
        """The batch with a range of its temporal grids only."""
        cell = self._merge**2
        first, last, of_images = (cell * self._first_G[number] for number in (begin, end, self._images))
        batch, videos = self.batch, self._media_G[max(begin, self._images) : end]
        medium_V, grids_V = videos.unique_consecutive(return_counts=True)
        thw_V3 = batch.video_grid_thw_V3[medium_V - self._images]  # a copy
        thw_V3[:, 0] = grids_V
        own: Any = batch
        return replace(
            own,
            pixel_values=_rows(batch.pixel_values, first, min(last, of_images)),
            pixel_values_videos=_rows(batch.pixel_values_videos, max(first, of_images) - of_images, last - of_images),
            image_grid_thw_I3=batch.image_grid_thw_I3[begin:end],
            video_grid_thw_V3=thw_V3,
        )

    def _counts(self, bounds: Sequence[int]) -> list[int]:
        """Tokens of every rank."""
        return [self._first_G[end] - self._first_G[begin] for begin, end in pairwise(bounds)]

    @property
    def _merge(self) -> int:
        return self.adapter.spec.tower_shape(self.adapter.model.config).merge_size

    @property
    def _images(self) -> int:
        return len(self.batch.image_grid_thw_I3)

    @cached_property
    def _media_G(self) -> Tensor:
        """The medium of every temporal grid."""
        grids = torch.cat([self.batch.image_grid_thw_I3, self.batch.video_grid_thw_V3])
        return torch.arange(len(grids)).repeat_interleave(grids[:, 0])

    @cached_property
    def _tokens_G(self) -> Tensor:
        grids = torch.cat([self.batch.image_grid_thw_I3, self.batch.video_grid_thw_V3])
        return (grids[:, 1] * grids[:, 2] // self._merge**2)[self._media_G]

    @cached_property
    def _first_G(self) -> list[int]:
        """The first token of every temporal grid, and the number of all tokens."""
        return pad(self._tokens_G.cumsum(0), (1, 0)).tolist()

    @cached_property
    def _bounds(self) -> list[int]:
        return _bounds(self._tokens_G.tolist(), self.group.size)


def _bounds(work_G: Sequence[int], size: int) -> list[int]:
    """Where the grids of every rank begin, such that all have about the same work, and the number of grids."""
    work = torch.tensor(work_G, dtype=torch.float64)
    middle_G = work.cumsum(0) - work / 2
    targets = work.sum() * torch.arange(1, size) / size
    return [0, *torch.searchsorted(middle_G, targets).tolist(), len(work_G)]


def _rows(pixels: Tensor | None, begin: int, end: int) -> Tensor | None:
    return pixels[begin:end] if pixels is not None and end > begin else None
