from __future__ import annotations

import pytest
import torch

from evs.positions import image_box, rope_positions, timed_box
from evs.serving.preserved import CHANNELS, Slots, carry, fill, from_channels, place, to_channels, within
from evs.types import Grid

WIDTH = 4
VIDEO, IMAGE = Grid(5, 3, 4), Grid(1, 5, 2)
BOXES = [
    timed_box(VIDEO, tokens_per_second=2, second_per_grid=3.0),
    image_box(IMAGE),
    timed_box(VIDEO, tokens_per_second=2, second_per_grid=0.25),
]
TEXT = [3, 0, 5, 2]  # tokens before, between and after the media


def pruned_prompt(dtype: torch.dtype) -> tuple[torch.Tensor, int, list[Slots], list[torch.Tensor]]:
    """The wanted positions and the next one, the media's slots, and the encoder's rows with their channels."""
    visual = torch.cat([torch.tensor([0] * n + [1] * t).bool() for n, t in zip(TEXT, [60, 10, 60, 0])])
    positions, following = rope_positions(visual, BOXES)
    keep = ~visual
    slots, rows, place_in_full, offset = [], [], 0, 0
    for number, box in enumerate(BOXES):
        place_in_full, offset = place_in_full + TEXT[number], offset + TEXT[number]
        kept = torch.rand(box.grid.tokens, generator=torch.Generator().manual_seed(number)) < 0.4
        kept |= torch.tensor(box.grid.T == 1)  # images keep all
        relative, extent = within([box])
        rows.append(carry(torch.zeros(int(kept.sum()), WIDTH, dtype=dtype), relative[:, kept]))
        slots.append(Slots(offset, int(kept.sum()), extent))
        keep[place_in_full : place_in_full + box.grid.tokens] = kept
        place_in_full, offset = place_in_full + box.grid.tokens, offset + int(kept.sum())
    return positions[:, keep], following, slots, rows


def chunk_rows(slots: list[Slots], rows: list[torch.Tensor], start: int, end: int) -> list[torch.Tensor]:
    cut = [r[max(start - s.offset, 0) : max(end - s.offset, 0)] for s, r in zip(slots, rows)]
    return [piece for piece in cut if len(piece)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_channels_carry_any_position_exactly(dtype) -> None:
    positions = torch.tensor([[0, 255, 256, 70_001], [1, 511, 65_536, 2**24 - 1], [2, 3, 300, 1344]])
    rows = torch.randn(4, WIDTH).to(dtype)
    carried = carry(rows, positions)
    assert torch.equal(from_channels(carried[:, -CHANNELS:]), positions)
    assert torch.equal(carried[:, :-CHANNELS], rows)
    assert to_channels(positions).max() < 256


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_chunks_of_any_length_end_at_the_unpruned_prompt_s_positions(chunk, dtype) -> None:
    wanted, following, slots, rows = pruned_prompt(dtype)
    length = wanted.shape[1]
    positions, delta = place(length, reversed(slots))
    for start in range(0, length, chunk):
        bare, new, delta = fill(positions, chunk_rows(slots, rows, start, start + chunk), start)
        assert all(r.shape[1] == WIDTH for r in bare)
        positions.copy_(new)
        assert torch.equal(positions[:, : start + chunk], wanted[:, : start + chunk])
    assert length + delta == following


def test_a_preempted_request_starts_over() -> None:
    wanted, _, slots, rows = pruned_prompt(torch.float32)
    positions, _ = place(wanted.shape[1], slots)
    positions.copy_(fill(positions, chunk_rows(slots, rows, 0, 20), 0)[1])
    for start, end in ((0, 40), (40, 1000)):
        positions.copy_(fill(positions, chunk_rows(slots, rows, start, end), start)[1])
    assert torch.equal(positions, wanted)


def test_a_cached_prefix_leaves_its_slots_alone() -> None:
    wanted, following, slots, rows = pruned_prompt(torch.float32)
    positions, _ = place(wanted.shape[1], slots)
    _, new, delta = fill(positions, chunk_rows(slots, rows, 16, 1000), 16)
    assert torch.equal(new[:, 16:], wanted[:, 16:])
    assert new.shape[1] + delta == following


def test_a_runner_that_stores_positions_as_int32_and_forgets_the_tensor_is_served_too() -> None:
    wanted, following, slots, rows = pruned_prompt(torch.float32)
    store = place(wanted.shape[1], slots)[0].int()
    for start in range(0, store.shape[1], 16):
        if chunk := chunk_rows(slots, rows, start, start + 16):
            _, new, delta = fill(store.long(), chunk, start)
            store.copy_(new)
    assert torch.equal(store.long(), wanted)
    assert store.shape[1] + delta == following


def test_a_prompt_that_ends_with_a_medium_goes_on_behind_it() -> None:
    _, extent = within([BOXES[0]])
    positions, delta = place(2 + 7, [Slots(2, 7, extent)])
    assert 9 + delta == 2 + extent
    assert fill(positions, [], 0)[2] == delta
