"""What the Qwen-VL families share: one vision tower, one text model, one way to lay media into a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from evs.adapters.base import MediaBatch
from evs.adapters.packing import decode_packed
from evs.positions import Box, image_box, rope_positions
from evs.types import DecoderInputs, Grid


@dataclass(frozen=True)
class QwenVL:
    """`model` is a Hugging Face *ForConditionalGeneration; a family adds its media's rules."""

    model: Any
    scheme: str = "preserve"

    schemes: ClassVar[tuple[str, ...]] = ("preserve",)

    def __post_init__(self) -> None:
        if self.scheme not in self.schemes:
            family = self.model.config.model_type
            raise ValueError(f"scheme {self.scheme!r} is unknown for {family}: use {' or '.join(self.schemes)}")

    def image_box(self, grid: Grid) -> Box:
        return image_box(grid)

    def video_boxes(self, grid: Grid, second_per_grid: float) -> list[Box]:
        raise NotImplementedError

    def grids(self, batch: MediaBatch) -> list[Grid]:
        return self._merged(batch.video_grid_thw_V3)

    def lay(self, batch: MediaBatch, *, pruned: bool = True) -> DecoderInputs:
        if not pruned and self.scheme != "preserve":  # servers break positions only when they prune
            return replace(self, scheme="preserve").lay(batch)
        video_N = batch.input_ids_N == self.model.config.video_token_id
        visual_N = video_N | (batch.input_ids_N == self.model.config.image_token_id)
        embeds_ND = self.model.get_input_embeddings()(batch.input_ids_N.to(self.model.device))
        device = embeds_ND.device
        return DecoderInputs(
            embeds_ND=embeds_ND,
            positions_PN=self.positions(batch).to(device),
            segment_N=batch.segment_N.to(device),
            labels_N=batch.labels_N.to(device),
            video_N=self._video_index(batch, video_N).to(device),
            visual_N=visual_N.to(device),
        )

    def see(self, batch: MediaBatch, laid: DecoderInputs) -> tuple[DecoderInputs, Tensor]:
        embeds_ND = laid.embeds_ND
        rows, levels = self._tower(batch, embeds_ND.device)
        order = _rows_in_prompt_order(laid)
        visual_rows, *deepstack = (level[order].to(embeds_ND.dtype) for level in (rows, *levels))
        embeds_ND = embeds_ND.masked_scatter(laid.visual_N[:, None], visual_rows)
        if not len(order):  # the tower saw a blank patch, so that every rank calls the same modules
            embeds_ND = embeds_ND + 0 * sum(level.sum() for level in (rows, *levels))
        of_videos = sum(grid.tokens for grid in self.grids(batch))
        features_MC = torch.cat([rows, *levels], dim=-1)[len(rows) - of_videos :]
        return replace(laid, embeds_ND=embeds_ND, deepstack=tuple(deepstack)), features_MC

    def read(self, x: DecoderInputs) -> Tensor:
        return decode_packed(self.model.model.language_model, x)

    def positions(self, batch: MediaBatch) -> Tensor:
        """[3, N] positions of the unpruned prompts, each starting at 0, on the CPU."""
        ids, segments = batch.input_ids_N, batch.segment_N
        image, video = self.model.config.image_token_id, self.model.config.video_token_id
        images = iter(self._merged(batch.image_grid_thw_I3))
        videos = iter(zip(self.grids(batch), batch.second_per_grid_V.tolist()))
        pieces = []
        for prompt in ids.split(segments.bincount().tolist()):
            visual = (prompt == image) | (prompt == video)
            pieces.append(rope_positions(visual, self._boxes(prompt[visual].tolist(), images, videos))[0])
        return torch.cat(pieces, dim=1)

    def _boxes(
        self, placeholders: list[int], images: Iterator[Grid], videos: Iterator[tuple[Grid, float]]
    ) -> list[Box]:
        """The media of one prompt in order, taken from the batch's as its placeholder tokens ask for them."""
        boxes: list[Box] = []
        while (used := sum(box.grid.tokens for box in boxes)) < len(placeholders):
            kind = "image" if placeholders[used] == self.model.config.image_token_id else "video"
            try:
                boxes += [self.image_box(next(images))] if kind == "image" else self.video_boxes(*next(videos))
            except StopIteration:
                raise ValueError(
                    f"the prompt has more {kind} placeholders than {kind}s: remove a mark or add a file"
                ) from None
        return boxes

    def _tower(self, batch: MediaBatch, device: torch.device) -> tuple[Tensor, list[Tensor]]:
        """(merged rows of all media, images first; the same rows of every deepstack level).

        One call of the tower per batch whatever the batch holds: under ZeRO 3 every rank must call it equally often.
        """
        grids = torch.cat([batch.image_grid_thw_I3, batch.video_grid_thw_V3])
        pixels = [x.to(device) for x in (batch.pixel_values, batch.pixel_values_videos) if x is not None]
        if not pixels:
            vision = self.model.config.vision_config
            merge = vision.spatial_merge_size
            patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
            pixels, grids = [torch.zeros(merge**2, patch, device=device)], torch.tensor([[1, merge, merge]])
        out = self.model.model.visual(torch.cat(pixels), grid_thw=grids.to(device))
        return out.pooler_output, list(getattr(out, "deepstack_features", None) or [])

    def _merged(self, grid_thw: Tensor) -> list[Grid]:
        merge = self.model.config.vision_config.spatial_merge_size
        return [Grid(t, h // merge, w // merge) for t, h, w in grid_thw.tolist()]

    def _video_index(self, batch: MediaBatch, video_N: Tensor) -> Tensor:
        tokens = torch.tensor([grid.tokens for grid in self.grids(batch)], dtype=torch.long)
        index = torch.full_like(batch.input_ids_N, -1)
        index[video_N] = torch.arange(len(tokens)).repeat_interleave(tokens)
        return index


def _rows_in_prompt_order(laid: DecoderInputs) -> Tensor:
    """[M] for every visual token in order, its row in (all images' rows, then all videos' rows)."""
    video_M = laid.video_N[laid.visual_N] >= 0
    return torch.where(video_M, (~video_M).sum() + video_M.cumsum(0), (~video_M).cumsum(0)) - 1
