"""Nemotron Omni: a RADIO tower, pixel shuffle, a projector, and a Mamba hybrid that knows no positions.

A temporal grid is a run of placeholders after the times of its frames in text. Videos and images share one placeholder
token, so the order of the media says which one a run belongs to. The library's own forward, which is never called here,
prunes inputs but not labels if the configuration asks for it. Frames are resized in floating point, so there are no
uint8 pixels that a method could score before the tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evs.families.base import MediaBatch, embed_tokens, filled, input_device, media_tokens, merged_grids
from evs.families.spec import FamilySpec
from evs.packing import decode_packed, index_in_segment
from evs.patch import patch, patch_forward
from evs.sequence_parallel import SequenceGroup
from evs.types import DecoderInputs, Grid

# Range of a Mamba layer's time step. The library clamps it to the configuration's `time_step_min`, which is meant for
# the initial weights, but only for whole sequences, not when it decodes token by token. Servers never clamp it.
STEP_LIMIT = (0.0, float("inf"))


@dataclass(frozen=True)
class Nemotron:
    """`model` is a NemotronH_Omni_Reasoning_V3. Scores the projector's output."""

    model: Any
    spec: FamilySpec
    scheme: str = "preserve"

    def __post_init__(self) -> None:
        vision = self.model.vision_model
        patch_forward(vision, partial(_encode, vision))
        patch_forward(vision.embeddings, partial(_embed, vision.embeddings))
        for layer in self.model.language_model.model.layers:
            if layer.block_type == "linear_attention":
                patch(layer.mixer, "time_step_limit", STEP_LIMIT)

    def placeholders(self, input_ids: Tensor) -> Tensor:
        return input_ids == self.model.config.image_token_id

    def video_placeholders(self, input_ids: Tensor) -> Tensor | None:
        return None

    def patches(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        media = dict(inputs)
        if (sizes := inputs.get("image_grid_hw")) is not None:
            media["image_grid_thw"] = torch.cat([torch.ones_like(sizes[:, :1]), sizes], dim=1)
        if (tubelets := inputs.get("pixel_values_videos")) is not None:
            if tubelets.ndim != 5:
                raise ValueError(
                    f"pixel_values_videos has {tubelets.ndim} axes: give [videos, temporal grids, channels of their "
                    "frames, height, width], as the library's processor returns"
                )
            side = self.model.config.vision_config.patch_size
            patches = tubelets.unflatten(4, (-1, side)).unflatten(3, (-1, side)).permute(0, 1, 3, 5, 2, 4, 6)
            videos, *thw = patches.shape[:4]
            media["pixel_values_videos"] = patches.flatten(4).flatten(0, 3)
            media["video_grid_thw"] = torch.tensor([thw] * videos)
        return media

    def grids(self, batch: MediaBatch) -> list[Grid]:
        return merged_grids(batch.video_grid_thw_V3, self._merge)

    def embed_prompt(self, batch: MediaBatch, *, embed: bool = True) -> DecoderInputs:
        tokens_M = media_tokens(batch, self._merge)
        visual_N = self.placeholders(batch.input_ids_N)
        return embed_tokens(self.model, batch, self.positions(batch), visual_N, tokens_M, embed=embed)

    def positions(self, batch: MediaBatch, *, pruned: bool = True) -> Tensor:
        """Not used: the language model has no rotary positions."""
        return index_in_segment(batch.segment_N)[None]

    def encode_media(self, batch: MediaBatch, embedded: DecoderInputs) -> tuple[DecoderInputs, Tensor]:
        (rows,) = self.tower(batch)
        of_videos = sum(grid.tokens for grid in self.grids(batch))
        return filled(embedded, [rows]), rows[len(rows) - of_videos :]

    def decode(self, x: DecoderInputs, group: SequenceGroup | None = None) -> Tensor:
        return decode_packed(self.model.language_model.model, x, self.spec.kernels, group)

    def tower(self, batch: MediaBatch) -> tuple[Tensor]:
        vision, pixels, grids = self.model.vision_model.config, [], []
        for frames, given, thw in (
            (1, batch.pixel_values, batch.image_grid_thw_I3),
            (vision.video_temporal_patch_size, batch.pixel_values_videos, batch.video_grid_thw_V3),
        ):
            blank = torch.zeros(0, frames * vision.num_channels * vision.patch_size**2)
            pixels.append((blank if given is None else given).to(input_device(self.model), self.model.dtype))
            grids += [(h, w) for t, h, w in thw.tolist() for _ in range(t)]
        if not grids:
            grids = [(self._merge, self._merge)]
            pixels[0] = pixels[0].new_zeros(self._merge**2, pixels[0].shape[1])
        features = self.model.vision_model(pixels, grids=grids)
        if self.model.vision_final_layernorm is not None:
            features = self.model.vision_final_layernorm(features)
        rows = self.model.multi_modal_projector(torch.cat(self._shuffled(features, grids)))
        return (rows.to(input_device(self.model)),)

    def _shuffled(self, features: Tensor, grids: list[tuple[int, int]]) -> list[Tensor]:
        """The tokens of every frame; a token is the concatenation of the patches of one cell."""
        ratio = self.model.config.downsample_ratio
        frames = zip(features.split([h * w for h, w in grids]), grids)
        return [self.model.pixel_shuffle(rows.view(1, h, w, -1), ratio).flatten(0, 2) for rows, (h, w) in frames]

    @property
    def _merge(self) -> int:
        return round(1 / self.model.config.downsample_ratio)


def _encode(vision: Any, pixels: Any, *stock: Any, grids: list[tuple[int, int]] | None = None, **options: Any) -> Any:
    """The library's own forward; with `grids`, [patches, D] of the images' and the videos' frames in `pixels`.

    Frames attend to themselves only: they form a batch if all have one size, else a pack.
    """
    if grids is None:
        return type(vision).forward(vision, pixels, *stock, **options)
    prefix = vision.config.num_summary_tokens
    lengths = torch.tensor([prefix + h * w for h, w in grids])
    hidden, borders = vision.embeddings(pixels[0], video_patches=pixels[1], grids=grids), None
    if bool((lengths == lengths[0]).all()):
        hidden = hidden.view(len(lengths), -1, hidden.shape[-1])
    else:
        hidden = hidden[None]
        borders = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(hidden.device, torch.int32)
    seen = vision.encoder(hidden, cu_seqlens=borders).last_hidden_state.flatten(0, 1)
    return torch.cat([frame[prefix:] for frame in seen.split(lengths.tolist())])


def _embed(
    embeddings: Any,
    pixel_values: Tensor,
    image_grid_hw: Tensor | None = None,
    *,
    video_patches: Tensor | None = None,
    grids: list[tuple[int, int]] | None = None,
) -> Tensor:
    """The library's own forward; with `grids`, [L, D] of images' and videos' patches together, each frame after its
    summary tokens. It runs in the module that owns the weights, so that ZeRO 3 gathers them around the call."""
    if grids is None:
        return type(embeddings).forward(embeddings, pixel_values, image_grid_hw)
    patches = torch.cat([embeddings.patch_projection(pixel_values), embeddings.video_patch_projection(video_patches)])
    places = {grid: embeddings._interpolate_position_embedding(grid, patches.dtype)[0] for grid in set(grids)}
    frames = zip(patches.split([h * w for h, w in grids]), grids)
    summary = embeddings.cls_register_token.to(patches.dtype)
    return torch.cat([part for rows, grid in frames for part in (summary, rows + places[grid])])
