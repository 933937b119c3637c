"""Packs encodings into the batch of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data.types import IGNORE, Batch, Encoding


def collate(encodings: Sequence[Encoding], *, filler_token: int) -> Batch:
    """Concatenate encodings without padding. Without any, the batch is one unlabelled `filler_token`, so that every
    rank takes part in the step."""
    if not encodings:
        return collate([_filler(filler_token)], filler_token=filler_token)
    lengths = torch.tensor([len(encoding.input_ids_N) for encoding in encodings])
    return Batch(
        ids=tuple(encoding.id for encoding in encodings if encoding.id),
        input_ids_N=torch.cat([encoding.input_ids_N for encoding in encodings]),
        labels_N=torch.cat([encoding.labels_N for encoding in encodings]),
        segment_N=torch.repeat_interleave(torch.arange(len(encodings)), lengths),
        pixel_values_videos=joined([encoding.pixel_values_videos for encoding in encodings]),
        video_grid_thw_V3=torch.cat([encoding.video_grid_thw_V3 for encoding in encodings]),
        second_per_grid_V=torch.cat([encoding.second_per_grid_V for encoding in encodings]),
        pixel_values=joined([encoding.pixel_values for encoding in encodings]),
        image_grid_thw_I3=torch.cat([encoding.image_grid_thw_I3 for encoding in encodings]),
        video_M=torch.cat([encoding.video_M for encoding in encodings]),
        choices=tuple(choice for encoding in encodings for choice in encoding.choices),
        video_normal=next((encoding.video_normal for encoding in encodings if encoding.video_normal), None),
        image_normal=next((encoding.image_normal for encoding in encodings if encoding.image_normal), None),
    )


def _filler(token: int) -> Encoding:
    return Encoding(
        id="",
        input_ids_N=torch.tensor([token]),
        labels_N=torch.tensor([IGNORE]),
        pixel_values_videos=None,
        video_grid_thw_V3=grids_of([]),
        second_per_grid_V=torch.zeros(0, dtype=torch.float64),
        pixel_values=None,
        image_grid_thw_I3=grids_of([]),
        video_M=torch.zeros(0, dtype=torch.bool),
        choices=(),
    )


def grids_of(grids: Sequence[Tensor]) -> Tensor:
    """[media, 3] grids of all media; [0, 3] if there are none."""
    return torch.cat(list(grids)) if grids else torch.zeros(0, 3, dtype=torch.int64)


def joined(pixels: Sequence[Tensor | None]) -> Tensor | None:
    """Patches of all media concatenated; None if there are none."""
    tensors = [tensor for tensor in pixels if tensor is not None]
    if len(tensors) < 2:
        return tensors[0] if tensors else None
    return torch.cat(tensors)
