"""Positions for a server that computes the kept rows of a medium only when its prefill reaches them.

Everything except the kept rows is known in advance. The text of a request is placed when it arrives, and the slots of
its media stay open. Every encoded row carries its number and its position relative to its medium, and is written to the
slot of that number. The order of media and chunks does not matter, and a repeated step writes the same values.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count, dropwhile

import torch
from torch import Tensor

from evs.positions import Box, rope_positions

DIGITS = 3  # base 256, so that every digit is exact in bfloat16 and float16: positions up to 16.7 million
CHANNELS = 4 * DIGITS
REMEMBERED = 2**16  # prompts: more than a server has in flight, in a few megabytes


@dataclass(frozen=True)
class Slots:
    """The tokens of one medium in a pruned prompt, and the number of positions that it takes."""

    offset: int
    length: int
    extent: int  # positions of the unpruned medium: text continues at its base + extent


@dataclass(frozen=True)
class Prompt:
    media: tuple[tuple[Slots, int], ...]  # each with the position of its first row, in the order of the prompt
    delta: int  # what to add to an index past the prompt's end


class Prompts:
    """The prompts that a process has placed, identified by the positions that a runner passes back.

    vLLM's first runner keeps the tensor of positions itself, to which its prompt is attached. The second keeps its
    values: an open slot holds the number of its prompt, which is negative, unlike any position. Once no slot is open,
    the prompt is the last one identified in the same row of the runner's buffer.
    """

    def __init__(self) -> None:
        self._numbers = count(-1, -1)
        self._known: dict[Hashable, Prompt] = {}

    def place(self, length: int, media: Iterable[Slots]) -> tuple[Tensor, int]:
        """([3, length] positions of a prompt with open slots for its media, what to add to an index past its end)."""
        positions = torch.empty(3, length, dtype=torch.long)
        number = next(self._numbers)
        placed = []
        cursor = following = 0
        for medium in sorted(media, key=lambda medium: medium.offset):
            base = following + medium.offset - cursor
            placed.append((medium, base))
            positions[:, cursor : medium.offset] = torch.arange(following, base)
            following = base + medium.extent
            cursor = medium.offset + medium.length
            positions[:, medium.offset : cursor] = number
        positions[:, cursor:] = torch.arange(following, following + length - cursor)
        prompt = Prompt(tuple(placed), following - cursor)
        if placed:
            self._remember(number, prompt)
        positions.prompt = prompt  # type: ignore[attr-defined]
        return positions, prompt.delta

    def fill(
        self, positions_PN: Tensor, chunk: Sequence[Tensor], start: int, row: Hashable
    ) -> tuple[list[Tensor], Tensor, int]:
        """(the chunk's rows without their channels, all positions with its slots filled in place, what to add to an
        index).

        `chunk` holds the rows of the media that a prefill reaches from token `start` on. A drafter starts one token
        later, except for media of one token. `row` identifies the request in the runner.
        """
        if not chunk:  # a step of decoding, of the first runner
            return [], positions_PN, positions_PN.prompt.delta  # type: ignore[attr-defined]
        counts = torch.tensor([len(rows) for rows in chunk])
        channels = torch.cat([rows[:, -CHANNELS:] for rows in chunk]).to(positions_PN.device)
        relative_PM, number_M = from_channels(channels)
        prompt, first = self._find(positions_PN, row, number_M[0])
        reached = dropwhile(lambda placed: placed[0].offset + first < start, prompt.media)
        starts = torch.tensor([(medium.offset, base) for (medium, base), _ in zip(reached, chunk)])
        offset_M, base_M = starts.repeat_interleave(counts, 0).T.to(positions_PN.device, non_blocking=True)
        positions_PN[:, offset_M + number_M] = (base_M + relative_PM).to(positions_PN)
        return [rows[:, :-CHANNELS] for rows in chunk], positions_PN, prompt.delta

    def _find(self, positions_PN: Tensor, row: Hashable, number: Tensor) -> tuple[Prompt, int]:
        """(the prompt of these positions, `number`). The second runner waits for its device here, once per chunk."""
        if prompt := getattr(positions_PN, "prompt", None):
            return prompt, int(number)
        lowest, first = torch.stack([positions_PN.min(), number]).tolist()
        if lowest < 0:
            self._remember(row, self._known[lowest])
        return self._known[row], first

    def _remember(self, key: Hashable, prompt: Prompt) -> None:
        self._known.pop(key, None)  # moves a row that is in use to the end
        self._known[key] = prompt
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]


def carry(rows_MD: Tensor, positions_PM: Tensor) -> Tensor:
    """[M, D + CHANNELS] the rows, followed by the digits of their relative positions and numbers."""
    return torch.cat([rows_MD, to_channels(positions_PM).to(rows_MD)], dim=1)


def to_channels(positions_PM: Tensor) -> Tensor:
    """[M, CHANNELS] int64 digits of M rows' positions >= 0 and their numbers, exact in any float dtype."""
    numbers_1M = torch.arange(positions_PM.shape[1], device=positions_PM.device)[None]
    figures = torch.cat([positions_PM, numbers_1M])
    return torch.stack([figures >> 8 * digit & 255 for digit in range(DIGITS)]).flatten(0, 1).T


def from_channels(channels: Tensor) -> tuple[Tensor, Tensor]:
    """([3, M] positions, [M] numbers) int64: the inverse of `to_channels`."""
    digits = channels.T.long().unflatten(0, (DIGITS, 4))
    figures = torch.stack([digits[digit] << 8 * digit for digit in range(DIGITS)]).sum(0)
    return figures[:3], figures[3]


def within(boxes: Sequence[Box]) -> tuple[Tensor, int]:
    """([3, M] positions relative to the first token, extent) of boxes without text between them."""
    return rope_positions(torch.ones(sum(box.grid.tokens for box in boxes), dtype=torch.bool), boxes)
