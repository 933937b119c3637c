"""GLM-4.1V and GLM-4.5V: every temporal grid is an image of its own, followed by its time in text.

Videos and images share one placeholder token. Positions are Qwen3-VL's, and so is the vision tower up to what it does
before and after its blocks, which `Stages` states.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from evs.families.mrope.adapter import MRopeAdapter
from evs.families.mrope.pruned_tower import Stages
from evs.patch import patch_forward
from evs.positions import Box, frame_boxes
from evs.types import Grid


def embed(visual: Any, pixels_RP: Tensor) -> Tensor:
    """[R, D] embedded and normalised patches."""
    return visual.post_conv_layernorm(visual.patch_embed(pixels_RP))


def place(visual: Any, hidden: Tensor, grid_thw: Tensor, rows_R: Tensor) -> Tensor:
    """Patches with the interpolated position embeddings of their rows among all rows of the grids."""
    m, rows = visual.spatial_merge_size, int(grid_thw.prod(1).sum())
    cells = [torch.arange(h * w).view(h // m, m, w // m, m).transpose(1, 2).flatten() for _, h, w in grid_thw.tolist()]
    widths = grid_thw[:, 2].repeat_interleave(grid_thw.prod(1))
    place_R = torch.cat(cells)
    nothing = hidden.new_zeros(rows, hidden.shape[1])
    h_R, w_R = (index_R.to(hidden.device) for index_R in (place_R // widths, place_R % widths))
    embeddings = visual.embeddings(nothing, grid_thw.prod(1), grid_thw.to(hidden.device), h_R, w_R)
    return hidden + embeddings[rows_R.to(hidden.device)]


def merge(visual: Any, hidden: Tensor) -> Tensor:
    """[units, D'] of the rows of merge units."""
    m = visual.spatial_merge_size
    units = visual.post_layernorm(hidden).view(-1, m, m, hidden.shape[-1]).permute(0, 3, 1, 2)
    return visual.merger(visual.downsample(units).flatten(1))


class GlmVL(MRopeAdapter):
    """Scores the merger output."""

    stages = Stages(embed, place, merge)

    def __post_init__(self) -> None:
        super().__post_init__()
        embeddings = self.model.model.visual.embeddings
        patch_forward(embeddings, partial(_embeddings, embeddings))

    def video_placeholders(self, input_ids: Tensor) -> Tensor | None:
        config = self.model.config
        begun, ended = (
            (input_ids == token).cumsum(0) for token in (config.video_start_token_id, config.video_end_token_id)
        )
        return self.placeholders(input_ids) & (begun > ended)

    def video_boxes(self, grid: Grid, second_per_grid: float) -> list[Box]:
        return frame_boxes(grid)

    def tower_grids(self, grid_thw: Tensor) -> Tensor:
        """One grid per frame: the tower looks position embeddings up by the border of what attends together."""
        frames = grid_thw.repeat_interleave(grid_thw[:, 0], dim=0)
        return torch.cat([torch.ones_like(frames[:, :1]), frames[:, 1:]], dim=1)


def _embeddings(embeddings: Any, hidden: Tensor, lengths: Tensor, *places: Any) -> Tensor:
    """The library's own forward; the lengths may be on the CPU, where borders of attention stay."""
    return type(embeddings).forward(embeddings, hidden, lengths.to(hidden.device), *places)
