"""The mask of the tokens of a batch that survive, and the batch reduced to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from evs.methods.base import Method
from evs.selection import check_rate
from evs.types import DecoderInputs, Grid


def keep_mask(
    x: DecoderInputs, inputs_MC: Tensor, grids: Sequence[Grid], rates_V: Sequence[float], method: Method
) -> Tensor:
    """[N] bool, True for every token that survives; all text and images do.

    `inputs_MC` holds the rows that the method scores, video after video, and `grids` and `rates_V` one entry per video.
    At rate 0 a video keeps all of its tokens under every method, as on a server.
    """
    if len(rates_V) != len(grids):
        raise ValueError(f"{len(rates_V)} pruning rates for {len(grids)} videos: give one rate per video")
    kept = [
        method.keep(rows, grid, rate).flatten().to(x.video_N.device)
        if check_rate(rate) > 0
        else torch.ones(grid.tokens, dtype=torch.bool, device=x.video_N.device)
        for rows, grid, rate in zip(inputs_MC.split([g.tokens for g in grids]), grids, rates_V)
    ]
    keep_N = x.video_N < 0
    if kept:
        # Videos are numbered in packed order, so their tokens have the order of the rows.
        keep_N = keep_N.masked_scatter(~keep_N, torch.cat(kept))
    return keep_N


def prune(x: DecoderInputs, keep_N: Tensor) -> DecoderInputs:
    """The kept tokens in their order, each with its embedding, positions, label, segment and deepstack rows."""
    if keep_N.dtype != torch.bool or keep_N.shape != x.segment_N.shape:
        raise ValueError(
            f"keep must be bool of shape {tuple(x.segment_N.shape)}, got {keep_N.dtype} {tuple(keep_N.shape)}"
        )
    kept = keep_N.nonzero().squeeze(1)
    visual = keep_N[x.visual_N]
    return replace(
        x,
        embeds_ND=x.embeds_ND[kept],
        positions_PN=x.positions_PN[:, kept],
        segment_N=x.segment_N[kept],
        labels_N=x.labels_N[kept],
        video_N=x.video_N[kept],
        visual_N=x.visual_N[kept],
        deepstack=tuple(rows[visual] for rows in x.deepstack),
    )
