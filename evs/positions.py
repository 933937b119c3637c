"""Rotary positions of unpruned prompts, and the schemes that keep or change them under pruning.

The scheme `preserve`: every survivor keeps the position it has in the unpruned prompt, and the text after a video
continues where it would have without pruning. All families follow one rule: text advances by one, and a medium is a
(t, h, w) box after which text continues at the maximum over all three rows plus one. They differ in what a medium is.
Transformers continues Qwen2.5-VL text at `base + max(h, w)` instead, which neither the original release nor servers do,
so positions are always computed here.

The schemes `vllm` and `vllm_bf16` imitate what stock vLLM does to Qwen2.5-VL when it prunes: text after a medium
restarts at `base + W`, whole seconds only, and in bf16 the offsets of the media are rounded to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evs.types import Grid

SCHEMES = ("preserve", "vllm", "vllm_bf16")


@dataclass(frozen=True)
class Box:
    """One medium of the prompt: its merged grid, and the offset on the time axis of every temporal grid."""

    grid: Grid
    t_offsets: tuple[int, ...]
    extent: int | None = None  # where text continues, relative to the base; None: after the maximum


def image_box(grid: Grid) -> Box:
    """An image has no extent in time: t is its base for every token."""
    return Box(grid, (0,) * grid.T)


def timed_box(grid: Grid, *, tokens_per_second: float, second_per_grid: float) -> Box:
    """A video with absolute time: temporal grid k has the offset `int(k * tokens_per_second * second_per_grid)`.

    The seconds are rounded to float32, as on their way to a server; the product is float64, then truncated.
    """
    seconds = torch.tensor(second_per_grid, dtype=torch.float32).item()
    offsets = torch.arange(grid.T, dtype=torch.float64) * (tokens_per_second * seconds)
    return Box(grid, tuple(offsets.long().tolist()))


def stock_vllm(box: Box, scheme: str) -> Box:
    """A medium with absolute time, positioned as stock vLLM 0.33.0 does when pruning is enabled."""
    t = torch.tensor(box.t_offsets)
    offsets = t.bfloat16().long() if scheme == "vllm_bf16" else t
    return replace(box, t_offsets=tuple(offsets.tolist()), extent=box.grid.W)


def frame_boxes(grid: Grid) -> list[Box]:
    """A video whose temporal grids are media of their own between timestamps in text."""
    return [Box(Grid(1, grid.H, grid.W), (0,))] * grid.T


def frame_positions(visual_N: Tensor, grid: Grid) -> tuple[Tensor, int]:
    """`rope_positions` of one video of `frame_boxes(grid)`, without a loop over its frames."""
    number_N = visual_N.cumsum(0) - visual_N.long()  # of video tokens before
    frames_N = number_N // grid.tokens_per_frame
    base_N = (~visual_N).cumsum(0) - (~visual_N).long() + frames_N * max(grid.H, grid.W)
    cell_N = number_N % grid.tokens_per_frame * visual_N
    positions = torch.stack([base_N, base_N + cell_N // grid.W, base_N + cell_N % grid.W])
    return positions, int((~visual_N).sum()) + grid.T * max(grid.H, grid.W)


def rope_positions(visual_N: Tensor, boxes: Sequence[Box]) -> tuple[Tensor, int]:
    """([3, N] int64 positions t, h, w of one unpruned prompt, the position of the token after it).

    `visual_N` is True on placeholder tokens; `boxes` are the prompt's media in order. Raises ValueError when the
    placeholders are not the boxes' tokens in unbroken runs.
    """
    visual = visual_N.nonzero().squeeze(1)
    if len(visual) != sum(box.grid.tokens for box in boxes):
        raise ValueError(
            f"the prompt has {len(visual)} placeholder tokens for media of "
            f"{sum(box.grid.tokens for box in boxes)}: give each mark one video or image of its own"
        )
    pieces: list[Tensor] = []
    cursor = position = used = 0
    for box in boxes:
        start = int(visual[used])
        used += box.grid.tokens
        if int(visual[used - 1]) - start != box.grid.tokens - 1:
            raise ValueError(f"text interrupts the {box.grid.tokens} placeholders of the medium at token {start}")
        pieces += [_text(position, start - cursor), _box(position + start - cursor, box)]
        position = int(pieces[-1].max()) + 1 if box.extent is None else int(pieces[-1][0, 0]) + box.extent
        cursor = start + box.grid.tokens
    rest = len(visual_N) - cursor
    pieces.append(_text(position, rest))
    return torch.cat(pieces, dim=1), position + rest


def _text(base: int, n: int) -> Tensor:
    return torch.arange(base, base + n).expand(3, n)


def _box(base: int, box: Box) -> Tensor:
    t, h, w = torch.tensor(box.t_offsets), torch.arange(box.grid.H), torch.arange(box.grid.W)
    return base + torch.stack(torch.meshgrid(t, h, w, indexing="ij")).flatten(1)
