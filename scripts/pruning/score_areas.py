"""How well the scores of a checkpoint see change in a video: by depth of the vision tower and by dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from evs.families import towers_of
from evs.methods import method_named
from evs.pipeline import EncodedBatch
from scripts.pruning.keep_masks import LoadedClip, load_clip
from train.reports.markdown import markdown_table

DTYPES = (torch.float32, torch.bfloat16)  # of the weights and of the scores, the finest first


def area_table(video: Path, model: str) -> str:
    """A table of `evs.score_area`: one row per number of blocks of the tower, the merger after the last of them."""
    checkpoint = load_clip(video, model)
    vision: Any = towers_of(checkpoint.adapter.model).vision
    if not checkpoint.adapter.spec.uint8_pixels:
        raise ValueError(f"model={model}: score=true compares uint8 pixels, and this family resizes in floating point")
    columns: list[list[str]] = []
    blocks = vision.blocks
    for dtype in DTYPES:
        checkpoint.adapter.model.to(dtype)
        columns.append([])
        for depth in range(1, len(blocks) + 1):
            vision.blocks = blocks[:depth]
            columns[-1].append(_area(checkpoint, dtype))
    rows = [[f"{depth} of {len(blocks)}", *areas] for depth, areas in enumerate(zip(*columns), 1)]
    kind = checkpoint.adapter.model.config.model_type
    header = ["blocks of the tower", *(str(dtype).removeprefix("torch.") for dtype in DTYPES)]
    return f"{kind}, method {checkpoint.policy.method}, {video.name}\n\n{markdown_table(header, rows)}"


@torch.no_grad()
def _area(checkpoint: LoadedClip, dtype: torch.dtype) -> str:
    policy, adapter = checkpoint.policy, checkpoint.adapter
    method = method_named(policy.method, str(dtype).removeprefix("torch."), policy.prune_at)
    (areas,) = EncodedBatch(adapter, checkpoint.batch, method).score_areas()
    return f"{areas[0]:.3f}" if areas else "no token changed, or all did"
