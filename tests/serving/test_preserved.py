from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evs.positions import Box, image_box, rope_positions, timed_box
from evs.serving import preserved
from evs.serving.preserved import CHANNELS, Prompts, Slots, carry, from_channels, to_channels, within
from evs.types import Grid

WIDTH = 4
VIDEO, IMAGE = Grid(5, 3, 4), Grid(1, 5, 2)
BOXES = [
    timed_box(VIDEO, tokens_per_second=2, second_per_grid=3.0),
    image_box(IMAGE),
    timed_box(VIDEO, tokens_per_second=2, second_per_grid=0.25),
]
TEXT = [3, 0, 5, 2]  # tokens before, between and after the media


@dataclass
class Pruned:
    """A prompt after pruning: what its positions must be, and what a server knows of it and gets from its encoder."""

    positions: torch.Tensor
    following: int
    slots: list[Slots]
    rows: list[torch.Tensor]

    @property
    def length(self) -> int:
        return self.positions.shape[1]

    def chunk(self, start: int, end: int) -> list[torch.Tensor]:
        cut = [r[max(start - s.offset, 0) : max(end - s.offset, 0)] for s, r in zip(self.slots, self.rows)]
        return [piece for piece in cut if len(piece)]


def prune(boxes: list[Box], text: list[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Pruned:
    """A prompt of `text[i]` tokens before medium i; videos keep their first grid and some more, images everything."""
    sizes = [box.grid.tokens for box in boxes]
    visual = torch.cat([torch.tensor([0] * n + [1] * t).bool() for n, t in zip(text, [*sizes, 0])])
    positions, following = rope_positions(visual, boxes)
    keep = ~visual
    slots, rows, place_in_full, offset = [], [], 0, 0
    for number, box in enumerate(boxes):
        place_in_full, offset = place_in_full + text[number], offset + text[number]
        kept = torch.rand(box.grid.tokens, generator=torch.Generator().manual_seed(seed + number)) < 0.4
        kept[: box.grid.tokens_per_frame] = True
        relative, extent = within([box])
        rows.append(carry(torch.zeros(int(kept.sum()), WIDTH, dtype=dtype), relative[:, kept]))
        slots.append(Slots(offset, int(kept.sum()), extent))
        keep[place_in_full : place_in_full + box.grid.tokens] = kept
        place_in_full, offset = place_in_full + box.grid.tokens, offset + int(kept.sum())
    return Pruned(positions[:, keep], following, slots, rows)


@dataclass
class First:
    """vLLM's first runner: keeps the very tensor of positions, and asks at every step of every request."""

    prompts: Prompts = field(default_factory=Prompts)
    store: torch.Tensor = field(init=False)
    delta: int = field(init=False)

    def add(self, prompt: Pruned) -> None:
        self.store, self.delta = self.prompts.place(prompt.length, reversed(prompt.slots))

    def step(self, prompt: Pruned, start: int, end: int, ahead: int = 0) -> torch.Tensor:
        rows = prompt.chunk(start + ahead, end + ahead)
        bare, new, self.delta = self.prompts.fill(self.store, rows, start, row="the request's tokens")
        assert all(piece.shape[1] == WIDTH for piece in bare)
        self.store.copy_(new)
        return self.store[:, start:end]


class Second(First):
    """vLLM's second runner: keeps the values as int32, and asks only where rows of media are in the step."""

    def add(self, prompt: Pruned) -> None:
        super().add(prompt)
        self.store = self.store.int()

    def step(self, prompt: Pruned, start: int, end: int, ahead: int = 0) -> torch.Tensor:
        if rows := prompt.chunk(start, end):
            _, new, self.delta = self.prompts.fill(self.store.long(), rows, start, row=0)
            self.store.copy_(new)
        return self.store[:, start:end]


def box(draw: st.DrawFn) -> Box:
    grid = Grid(*(draw(st.integers(1, 5)) for _ in range(3)))
    seconds = draw(st.sampled_from([0.0, 0.25, 1.0, 3.3]))
    return image_box(grid) if grid.T == 1 else timed_box(grid, tokens_per_second=2, second_per_grid=seconds)


@st.composite
def prompts(draw: st.DrawFn) -> Pruned:
    boxes = [box(draw) for _ in range(draw(st.integers(1, 4)))]
    text = [draw(st.integers(0, 6)) for _ in range(len(boxes) + 1)]
    return prune(boxes, text, seed=draw(st.integers(0, 99)))


@st.composite
def steps(draw: st.DrawFn, length: int) -> list[tuple[int, int]]:
    """Chunks from a cached prefix on; after any of them the request may be set back, to before its prefix too."""
    start = draw(st.integers(0, length - 1))
    out = []
    for _ in range(draw(st.integers(1, 12))):
        end = draw(st.integers(start + 1, length))
        out.append((start, end))
        start = draw(st.integers(0, end)) if draw(st.booleans()) else end
        start = 0 if start == length else start
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_channels_carry_any_position_exactly(dtype) -> None:
    positions = torch.tensor([[0, 255, 256, 70_001], [1, 511, 65_536, 2**24 - 1], [2, 3, 300, 1344]])
    rows = torch.randn(4, WIDTH).to(dtype)
    carried = carry(rows, positions)
    found, numbers = from_channels(carried[:, -CHANNELS:])
    assert torch.equal(found, positions)
    assert numbers.tolist() == [0, 1, 2, 3]
    assert torch.equal(carried[:, :-CHANNELS], rows)
    assert to_channels(positions).max() < 256


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("runner", [First, Second])
def test_chunks_of_any_length_end_at_the_unpruned_prompt_s_positions(runner, chunk, dtype) -> None:
    prompt, server = prune(BOXES, TEXT, dtype), runner()
    server.add(prompt)
    for start in range(0, prompt.length, chunk):
        server.step(prompt, start, start + chunk)
        assert torch.equal(server.store[:, : start + chunk].long(), prompt.positions[:, : start + chunk])
    assert prompt.length + server.delta == prompt.following


@pytest.mark.parametrize("runner", [First, Second])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_step_that_is_run_again_has_the_positions_of_the_first_time(runner, data) -> None:
    prompt, server = data.draw(prompts()), runner()
    server.add(prompt)
    assert prompt.length + server.delta == prompt.following
    for start, end in data.draw(steps(prompt.length)):
        assert torch.equal(server.step(prompt, start, end).long(), prompt.positions[:, start:end])
        assert prompt.length + server.delta == prompt.following


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_drafter_s_look_ahead_moves_nothing(data) -> None:
    prompt, server = data.draw(prompts()), First()
    assume(all(medium.length > 1 for medium in prompt.slots))  # of one row it is unknown whose it is
    server.add(prompt)
    chunk = data.draw(st.integers(1, prompt.length))
    for start in range(0, prompt.length, chunk):
        end = min(start + chunk, prompt.length)
        server.step(prompt, start, end)
        assert torch.equal(server.step(prompt, start, end, ahead=1), prompt.positions[:, start:end])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_requests_take_turns_in_the_rows_of_one_store(data) -> None:
    server = Second()
    for prompt in data.draw(st.lists(prompts(), min_size=2, max_size=4)):
        server.add(prompt)
        for start, end in data.draw(steps(prompt.length)):
            assert torch.equal(server.step(prompt, start, end).long(), prompt.positions[:, start:end])


def test_a_prompt_of_text_alone_counts_on() -> None:
    text = Pruned(torch.arange(7).expand(3, -1), 7, [], [])
    server = First()
    server.add(text)
    assert torch.equal(server.step(text, 0, 7), text.positions)
    assert server.delta == 0


def test_prompts_that_were_never_filled_are_forgotten_in_the_end(monkeypatch) -> None:
    monkeypatch.setattr(preserved, "REMEMBERED", 8)
    prompt, server = prune(BOXES, TEXT), Second()
    placed = [weakref.ref(server.prompts.place(prompt.length, prompt.slots)[0].prompt) for _ in range(20)]
    assert [known() is not None for known in placed] == [False] * 12 + [True] * 8
    server.add(prompt)
    assert torch.equal(server.step(prompt, 0, prompt.length).long(), prompt.positions)


def test_a_row_in_use_is_not_forgotten_when_other_prompts_arrive(monkeypatch) -> None:
    monkeypatch.setattr(preserved, "REMEMBERED", 3)
    prompt, server = prune(BOXES, TEXT), Second()
    for _ in range(2):  # two requests, one after the other in the same row
        server.add(prompt)
        server.step(prompt, 0, prompt.length)
    for _ in range(2):
        server.prompts.place(prompt.length, prompt.slots)
    assert torch.equal(server.step(prompt, 0, prompt.length).long(), prompt.positions)


def test_a_prompt_that_ends_with_a_medium_goes_on_behind_it() -> None:
    prompt, server = prune(BOXES[:1], [2, 0]), Second()
    server.add(prompt)
    for _ in range(2):
        server.step(prompt, 0, prompt.length)
        assert prompt.length + server.delta == prompt.following
