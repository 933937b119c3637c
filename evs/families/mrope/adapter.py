"""The base adapter of families with multimodal rotary positions (M-RoPE) and the modules of Qwen-VL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from evs.families.base import (
    MediaBatch,
    embed_tokens,
    filled,
    input_device,
    media_tokens,
    merged_grids,
    rows_in_prompt_order,
)
from evs.families.mrope.fast_tower import levels_of, normalised, speed_up
from evs.families.mrope.pruned_tower import Stages, Units
from evs.families.spec import FamilySpec
from evs.packing import decode_packed
from evs.positions import Box, image_box, rope_positions
from evs.pruning import prune
from evs.sequence_parallel import SequenceGroup
from evs.types import DecoderInputs, Grid


@dataclass(frozen=True)
class MRopeAdapter:
    """`model` is a Hugging Face *ForConditionalGeneration. A subclass adds the positions of its media."""

    model: Any
    spec: FamilySpec
    scheme: str = "preserve"

    stages: ClassVar[Stages] = Stages()

    def __post_init__(self) -> None:
        speed_up(self.model.model.visual, self.stages)

    def image_box(self, grid: Grid) -> Box:
        return image_box(grid)

    def video_boxes(self, grid: Grid, second_per_grid: float) -> list[Box]:
        raise NotImplementedError

    def tower_grids(self, grid_thw: Tensor) -> Tensor:
        """The grids as the vision tower takes them."""
        return grid_thw

    def placeholders(self, input_ids: Tensor) -> Tensor:
        config = self.model.config
        return (input_ids == config.image_token_id) | (input_ids == config.video_token_id)

    def video_placeholders(self, input_ids: Tensor) -> Tensor | None:
        return input_ids == self.model.config.video_token_id

    def patches(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return dict(inputs)

    def grids(self, batch: MediaBatch) -> list[Grid]:
        return merged_grids(batch.video_grid_thw_V3, self._merge)

    def embed_prompt(self, batch: MediaBatch, *, embed: bool = True) -> DecoderInputs:
        visual_N, tokens_M = self.placeholders(batch.input_ids_N), media_tokens(batch, self._merge)
        return embed_tokens(self.model, batch, self.positions(batch), visual_N, tokens_M, embed=embed)

    def encode_media(self, batch: MediaBatch, embedded: DecoderInputs) -> tuple[DecoderInputs, Tensor]:
        levels = self.tower(batch)
        of_videos = sum(grid.tokens for grid in self.grids(batch))
        return filled(embedded, levels), torch.cat(levels, dim=-1)[len(levels[0]) - of_videos :]

    def encode_kept(self, batch: MediaBatch, embedded: DecoderInputs, keep_N: Tensor, depth: int) -> DecoderInputs:
        kept_U = keep_N.new_empty(int(embedded.visual_N.sum()))
        kept_U[rows_in_prompt_order(embedded)] = keep_N[embedded.visual_N]
        return filled(prune(embedded, keep_N), self.tower(batch, kept_U.cpu(), depth))

    def pixels(self, batch: MediaBatch) -> Tensor:
        tokens = sum(grid.tokens for grid in self.grids(batch))
        levels = levels_of(batch.pixel_values_videos, batch.video_normal)
        return levels.to(input_device(self.model), non_blocking=True).reshape(tokens, -1)

    def decode(self, x: DecoderInputs, group: SequenceGroup | None = None) -> Tensor:
        return decode_packed(self.model.model.language_model, x, self.spec.kernels, group)

    def positions(self, batch: MediaBatch, *, pruned: bool = True) -> Tensor:
        if not pruned and self.scheme != "preserve":  # servers break positions only when they prune
            return replace(self, scheme="preserve").positions(batch)
        media, pieces = self._media(batch), []
        for visual_N in self.placeholders(batch.input_ids_N).split(batch.segment_N.bincount().tolist()):
            boxes: list[Box] = []
            while sum(box.grid.tokens for box in boxes) < int(visual_N.sum()):
                boxes += next(media)
            pieces.append(rope_positions(visual_N, boxes)[0])
        return torch.cat(pieces, dim=1)

    def _media(self, batch: MediaBatch) -> Iterator[list[Box]]:
        """The boxes of every medium of the batch in prompt order. ValueError at the end of the media."""
        images = iter(merged_grids(batch.image_grid_thw_I3, self._merge))
        videos = iter(zip(self.grids(batch), batch.second_per_grid_V.tolist()))
        for is_video in batch.video_M.tolist():
            yield self.video_boxes(*next(videos)) if is_video else [self.image_box(next(images))]
        raise ValueError("the prompts have more placeholders than their media take: remove a mark or add a file")

    def tower(self, batch: MediaBatch, kept_U: Tensor | None = None, depth: int = 0) -> tuple[Tensor, ...]:
        device, units = input_device(self.model), None if kept_U is None or not len(kept_U) else Units(kept_U, depth)
        grids = torch.cat([batch.image_grid_thw_I3, batch.video_grid_thw_V3])
        pixels = self._normalised(batch, device, units)
        if not pixels:
            vision = self.model.config.vision_config
            merge = vision.spatial_merge_size
            patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
            pixels, grids = [torch.zeros(merge**2, patch, device=device)], torch.tensor([[1, merge, merge]])
        grids = self.tower_grids(grids)
        rows_RP = pixels.pop() if len(pixels) == 1 else torch.cat(pixels)  # avoid a copy
        if units is not None:
            levels = self.model.model.visual(rows_RP, grid_thw=grids, units=units)
        else:
            out = self.model.model.visual(rows_RP, grid_thw=grids)
            levels = (out.pooler_output, *(getattr(out, "deepstack_features", None) or ()))
        return tuple(level.to(device) for level in levels)  # a device_map may place the tower elsewhere

    def _normalised(self, batch: MediaBatch, device: torch.device, units: Units | None) -> list[Tensor]:
        """The patches that enter the tower, of images, then of videos.

        All patches are copied from pinned memory: a GPU selects rows faster than a CPU copies them together.
        """
        media = ((batch.pixel_values, batch.image_normal), (batch.pixel_values_videos, batch.video_normal))
        inputs = [(rows.to(device, non_blocking=True), normal) for rows, normal in media if rows is not None]
        if units is not None and units.depth == 0:
            kept_R = units.kept_U.to(device).repeat_interleave(self._merge**2)
            kept = kept_R.split([len(rows) for rows, _ in inputs])
            inputs = [(rows[kept_R], normal) for (rows, normal), kept_R in zip(inputs, kept)]
        return [normalised(rows, normal) for rows, normal in inputs]

    @property
    def _merge(self) -> int:
        return self.model.config.vision_config.spatial_merge_size
