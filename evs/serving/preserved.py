"""Positions for a server that learns which rows of a medium survive only when its prefill reaches them.

All but the kept rows is known before the mask. So a request's text is placed for good when it arrives, its media's
slots are marked with their base, every row that leaves the encoder carries its position relative to that base, and
each prefill chunk fills its slots. Nothing is searched for in the prompt: neither the order of media nor chunks
matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evs.positions import Box, rope_positions

DIGITS = 3  # base 256, so that every digit is exact in bfloat16 and float16: positions up to 16.7 million
CHANNELS = 3 * DIGITS


@dataclass(frozen=True)
class Slots:
    """One medium's place in a pruned prompt, and the positions that its rows take."""

    offset: int
    length: int
    extent: int  # positions that the unpruned medium takes: text continues at its base + extent


def carry(rows_MD: Tensor, positions_PM: Tensor) -> Tensor:
    """[M, D + CHANNELS] the rows, each with its relative position beside it."""
    return torch.cat([rows_MD, to_channels(positions_PM).to(rows_MD)], dim=1)


def to_channels(positions_PM: Tensor) -> Tensor:
    """[M, CHANNELS] int64 digits of positions >= 0, exact in any float dtype."""
    return torch.stack([positions_PM >> 8 * digit & 255 for digit in range(DIGITS)]).flatten(0, 1).T


def from_channels(channels: Tensor) -> Tensor:
    """[3, M] int64: the inverse of `to_channels`."""
    digits = channels.T.long().unflatten(0, (DIGITS, 3))
    return torch.stack([digits[digit] << 8 * digit for digit in range(DIGITS)]).sum(0)


def within(boxes: Sequence[Box]) -> tuple[Tensor, int]:
    """([3, M] positions relative to the first token, extent) of boxes without text between them."""
    return rope_positions(torch.ones(sum(box.grid.tokens for box in boxes), dtype=torch.bool), boxes)


def place(length: int, media: Iterable[Slots]) -> tuple[Tensor, int]:
    """([3, length] a prompt's positions with its media's slots marked, what to add to an index past its end)."""
    positions = torch.empty(3, length, dtype=torch.long)
    cursor = following = 0
    for medium in sorted(media, key=lambda medium: medium.offset):
        base = following + medium.offset - cursor
        positions[:, cursor : medium.offset] = torch.arange(following, base)
        following = base + medium.extent
        cursor = medium.offset + medium.length
        positions[:, medium.offset : cursor] = _mark(base, following)
    positions[:, cursor:] = torch.arange(following, following + length - cursor)
    # A runner that keeps this very tensor may start a preempted request over: then the marks are needed again.
    positions.marks = positions.clone()  # type: ignore[attr-defined]
    return positions, _next_position(positions) - length


def fill(positions_PN: Tensor, chunk: Sequence[Tensor], start: int) -> tuple[list[Tensor], Tensor, int]:
    """(the chunk's rows without their channels, all positions with its slots filled, what to add to an index).

    `chunk` holds the rows of the media, one after another, that a prefill from token `start` on comes upon.
    """
    marks = getattr(positions_PN, "marks", positions_PN)
    positions = positions_PN.clone()
    if chunk:
        rows = torch.cat([from_channels(rows[:, -CHANNELS:]) for rows in chunk], dim=1).to(positions.device)
        slots = start + (marks[0, start:] < 0).nonzero().squeeze(1)[: rows.shape[1]]
        positions[:, slots] = rows + _base(marks[:, slots])
    return [rows[:, :-CHANNELS] for rows in chunk], positions, _next_position(marks) - marks.shape[1]


def _mark(base: int, following: int) -> Tensor:
    """[3, 1] an unfilled slot: its medium's base, the position after the medium; negative, as no position is."""
    return torch.tensor([[-1 - base], [-1 - following], [-1]])


def _base(marks: Tensor) -> Tensor:
    return -1 - marks[0]


def _next_position(marks: Tensor) -> int:
    """The position of the first generated token, from the prompt's last one."""
    text, mark = marks[:2, -1].tolist()
    return text + 1 if text >= 0 else -1 - mark
