"""Prompts packed end to end, and their making from the padded rows that a Hugging Face processor returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from evs.families import Adapter
from evs.stock.pixel_levels import Normal
from evs.types import IGNORE

VIDEO_TYPE = 2  # of mm_token_type_ids, as processors number them
VIDEOS, IMAGES = ("pixel_values_videos", "video_grid_thw"), ("pixel_values", "image_grid_thw")


@dataclass(frozen=True)
class PackedPrompts:
    """What an adapter reads of one prompt or of several packed end to end: an `evs.families.MediaBatch`."""

    input_ids_N: Tensor
    labels_N: Tensor
    segment_N: Tensor
    pixel_values_videos: Tensor | None
    video_grid_thw_V3: Tensor
    second_per_grid_V: Tensor
    pixel_values: Tensor | None
    image_grid_thw_I3: Tensor
    video_M: Tensor
    video_normal: Normal | None = None  # None: the pixels are normalised
    image_normal: Normal | None = None


@dataclass(frozen=True)
class PaddedRows:
    """Packed prompts, and where their tokens are in the padded rows that they come from."""

    prompts: PackedPrompts
    index_N: Tensor  # of every token in the B * L tokens of the rows, ascending
    shape: tuple[int, int]  # B rows of L tokens


def unpad(adapter: Adapter, inputs: Mapping[str, Any], normal: Normal | None = None) -> PaddedRows:
    """The prompts of a processor's output, without padding.

    Rows may be padded on either side, and may hold several samples: one begins where `position_ids` restart at 0 or
    where `attention_mask` changes its number. The first token of a sample has no label, since nothing predicts it.
    `normal` is needed for pixels in uint8, and for methods that score pixels. Raises ValueError for inputs that do not
    belong together.
    """
    mask_BL = _mask(inputs)
    ids_BL = inputs["input_ids"].cpu()
    index_N = mask_BL.flatten().nonzero().squeeze(1)
    if not len(index_N):
        raise ValueError("attention_mask masks all tokens: remove the batch, or give its rows a token")
    starts_N = _starts(inputs, mask_BL, index_N)
    media = adapter.patches(inputs)
    (videos, video_grids), (images, image_grids) = _media(media, *VIDEOS), _media(media, *IMAGES)
    prompts = PackedPrompts(
        input_ids_N=ids_BL.flatten()[index_N],
        labels_N=_labels(inputs, ids_BL).flatten()[index_N].masked_fill(starts_N, IGNORE),
        segment_N=starts_N.cumsum(0) - 1,
        pixel_values_videos=videos,
        video_grid_thw_V3=video_grids,
        second_per_grid_V=_seconds(inputs, len(video_grids)),
        pixel_values=images,
        image_grid_thw_I3=image_grids,
        video_M=torch.zeros(0, dtype=torch.bool),
        video_normal=normal,
        image_normal=normal,
    )
    types = inputs.get("mm_token_type_ids")
    types_N = None if types is None else types.cpu().flatten()[index_N]
    return PaddedRows(
        replace(prompts, video_M=_order(adapter, prompts, types_N)), index_N, (len(ids_BL), ids_BL.shape[1])
    )


def _mask(inputs: Mapping[str, Any]) -> Tensor:
    """[B, L] the attention mask on the CPU, nonzero on tokens; all ones if there is none."""
    ids_BL, mask = inputs["input_ids"], inputs.get("attention_mask")
    if ids_BL.ndim != 2:
        raise ValueError(f"input_ids have shape {tuple(ids_BL.shape)}: give rows of tokens, [batch, length]")
    if mask is None:
        return torch.ones_like(ids_BL, device="cpu")
    if getattr(mask, "shape", None) != ids_BL.shape:
        given = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask is {given} and input_ids {tuple(ids_BL.shape)}: give the mask of the padding")
    return mask.cpu()


def _labels(inputs: Mapping[str, Any], ids_BL: Tensor) -> Tensor:
    """[B, L] labels on the CPU; IGNORE without labels."""
    if (labels := inputs.get("labels")) is None:
        return torch.full_like(ids_BL, IGNORE)
    if labels.shape != ids_BL.shape:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and input_ids {tuple(ids_BL.shape)}: give every token a label, "
            f"{IGNORE} for none"
        )
    return labels.cpu()


def _starts(inputs: Mapping[str, Any], mask_BL: Tensor, index_N: Tensor) -> Tensor:
    """[N] True on the first token of every sample."""
    row_N, number_N = index_N // mask_BL.shape[1], mask_BL.flatten()[index_N]
    starts_N = torch.ones_like(row_N, dtype=torch.bool)
    starts_N[1:] = (row_N[1:] != row_N[:-1]) | (number_N[1:] != number_N[:-1])
    if (positions := inputs.get("position_ids")) is not None:
        # [B, L], or several rows of positions [3 or 4, B, L], of which only a first token is 0 everywhere.
        positions_PBL = positions.cpu().reshape(-1, positions.shape[-2], mask_BL.shape[1])
        first_BL = (positions_PBL == 0).all(0).expand_as(mask_BL)
        starts_N |= first_BL.flatten()[index_N]
    return starts_N


def _seconds(inputs: Mapping[str, Any], videos: int) -> Tensor:
    """[V] float64 seconds between the temporal grids of every video; 1 if they are not given, as in transformers."""
    if (given := inputs.get("second_per_grid_ts")) is None:
        return torch.ones(videos, dtype=torch.float64)
    seconds_V = torch.as_tensor(given, dtype=torch.float64).flatten().cpu()
    if len(seconds_V) != videos:
        raise ValueError(f"second_per_grid_ts has {len(seconds_V)} values for {videos} videos: give one per video")
    return seconds_V


def _media(media: Mapping[str, Any], pixels: str, grid: str) -> tuple[Tensor | None, Tensor]:
    """(rows of patches or None, [media, 3] grids on the CPU) of the videos or of the images."""
    rows, grids = media.get(pixels), media.get(grid)
    if rows is None:
        if grids is not None and len(grids):
            raise ValueError(f"{grid} has {len(grids)} entries without {pixels}: give both")
        return None, torch.zeros(0, 3, dtype=torch.long)
    if grids is None:
        raise ValueError(f"{pixels} is given without {grid}: give both, as the processor returns them")
    grids = torch.as_tensor(grids).cpu().long().view(-1, 3)
    if len(rows) != (patches := int(grids.prod(1).sum())):
        raise ValueError(
            f"{pixels} has {len(rows)} patches and {grid} counts {patches}: give them as the processor does"
        )
    return (rows if len(rows) else None), grids


def _order(adapter: Adapter, prompts: PackedPrompts, types_N: Tensor | None) -> Tensor:
    """[media] bool, True for a video, in prompt order.

    Raises ValueError if the placeholders of a sample are not those of whole media.
    """
    merge = adapter.spec.tower_shape(adapter.model.config).merge_size
    tokens = {
        kind: (grids.prod(1) // merge**2).tolist()
        for kind, grids in ((True, prompts.video_grid_thw_V3), (False, prompts.image_grid_thw_I3))
    }
    visual_N = adapter.placeholders(prompts.input_ids_N)
    is_video_M, segment_M = _are_videos(adapter, prompts, types_N)[visual_N], prompts.segment_N[visual_N]
    order, begin, left = [], 0, {kind: list(counts) for kind, counts in tokens.items()}
    while begin < len(is_video_M):
        kind = bool(is_video_M[begin])
        end = begin + (left[kind].pop(0) if left[kind] else 0)
        own = (is_video_M[begin:end] == kind) & (segment_M[begin:end] == segment_M[begin])
        if not begin < end <= len(own) + begin or not bool(own.all()):
            break
        order.append(kind)
        begin = end
    if begin < len(is_video_M) or any(left.values()):
        raise ValueError(
            f"input_ids have {len(is_video_M)} placeholders, and their {len(tokens[True])} videos and "
            f"{len(tokens[False])} images take {sum(map(sum, tokens.values()))}: do not truncate prompts with media"
        )
    return torch.tensor(order, dtype=torch.bool)


def _are_videos(adapter: Adapter, prompts: PackedPrompts, types_N: Tensor | None) -> Tensor:
    """[N] bool, True on placeholders of videos. Families that share one placeholder need the types of tokens."""
    if not len(prompts.video_grid_thw_V3) or not len(prompts.image_grid_thw_I3):
        return torch.full_like(prompts.input_ids_N, len(prompts.video_grid_thw_V3) > 0, dtype=torch.bool)
    if types_N is not None:
        return types_N == VIDEO_TYPE
    videos_N = adapter.video_placeholders(prompts.input_ids_N)
    if videos_N is None:
        raise ValueError(
            "videos and images share a placeholder in this family: pass mm_token_type_ids, 1 on the tokens of images "
            "and 2 on those of videos"
        )
    return videos_N
