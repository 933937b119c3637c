"""Packs encodings into the batch of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data.types import IGNORE, Batch, Encoding, no_grids

TENSORS = ("input_ids_N", "labels_N", "video_grid_thw_V3", "second_per_grid_V", "image_grid_thw_I3", "video_M")
PIXELS, NORMALS = ("pixel_values_videos", "pixel_values"), ("video_normal", "image_normal")


def collate(encodings: Sequence[Encoding], *, filler_token: int) -> Batch:
    """Concatenate encodings without padding. Without any, the batch is one unlabelled `filler_token`, so that every
    rank takes part in the step."""
    if not encodings:
        filler = Encoding(id="", input_ids_N=torch.tensor([filler_token]), labels_N=torch.tensor([IGNORE]))
        return collate([filler], filler_token=filler_token)

    def column(name: str) -> list[Any]:
        return [getattr(encoding, name) for encoding in encodings]

    lengths = torch.tensor([len(encoding.input_ids_N) for encoding in encodings])
    columns: dict[str, Any] = {name: torch.cat(column(name)) for name in TENSORS}
    columns |= {name: joined(column(name)) for name in PIXELS}
    columns |= {name: next(filter(None, column(name)), None) for name in NORMALS}
    return Batch(
        ids=tuple(encoding.id for encoding in encodings if encoding.id),
        segment_N=torch.repeat_interleave(torch.arange(len(encodings)), lengths),
        choices=tuple(choice for encoding in encodings for choice in encoding.choices),
        **columns,
    )


def grids_of(grids: Sequence[Tensor]) -> Tensor:
    """[media, 3] grids of all media; [0, 3] if there are none."""
    return torch.cat(list(grids)) if grids else no_grids()


def joined(pixels: Sequence[Tensor | None]) -> Tensor | None:
    """Patches of all media concatenated; None if there are none."""
    tensors = [tensor for tensor in pixels if tensor is not None]
    if len(tensors) < 2:
        return tensors[0] if tensors else None
    return torch.cat(tensors)
