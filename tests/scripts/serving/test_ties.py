from __future__ import annotations

import pytest
import torch

from evs.methods.evs import FrameDelta
from evs.methods.vidcom2 import VidCom2
from evs.selection import select
from evs.types import Grid
from scripts.serving.ties import UNITS, ServersChoice

GRID, RATE = Grid(4, 2, 3), 0.5


def scores_with(monkeypatch, gap: float) -> list[int]:
    """Scores whose cut lies between two tokens `gap` apart; what a server keeps that takes the other one."""
    scores = torch.linspace(1, 0.1, GRID.tokens)
    cut = GRID.tokens // 2
    scores[cut] = scores[cut - 1] - gap
    monkeypatch.setattr(FrameDelta, "__call__", lambda self, features, grid: scores.view(grid.T, grid.H, grid.W))
    return [*range(cut - 1), cut]


def test_a_choice_between_equal_scores_is_taken_over_and_counted(monkeypatch) -> None:
    theirs = scores_with(monkeypatch, gap=1.2e-7)
    choice = ServersChoice([theirs], FrameDelta())
    assert choice.keep(torch.empty(0), GRID, RATE).flatten().nonzero().flatten().tolist() == theirs
    assert (choice.ties, choice.gap) == (1, 0.0)


@pytest.mark.parametrize("gap", [1e-6, 0.01])
def test_a_choice_against_the_scores_is_none(monkeypatch, gap) -> None:
    choice = ServersChoice([scores_with(monkeypatch, gap)], FrameDelta())
    assert choice.keep(torch.empty(0), GRID, RATE).flatten().nonzero().flatten().tolist() == list(range(12))
    assert choice.ties == 0
    assert choice.gap == pytest.approx(gap, abs=UNITS * 1.2e-7)


def test_the_same_choice_and_an_unknown_one_change_nothing() -> None:
    features = torch.randn(GRID.tokens, 8)
    own = FrameDelta()(features, GRID)
    kept = select(own, RATE).flatten().nonzero().flatten().tolist()
    for choice in [ServersChoice(each, FrameDelta()) for each in ([kept], [], [kept[:-1]])]:
        assert choice.keep(features, GRID, RATE).flatten().nonzero().flatten().tolist() == kept
        assert (choice.ties, choice.gap) == (0, 0.0)


def test_videos_are_matched_in_order(monkeypatch) -> None:
    theirs = scores_with(monkeypatch, gap=0.0)
    choice = ServersChoice([list(range(12)), theirs], FrameDelta())
    kept = [choice.keep(torch.empty(0), GRID, RATE).flatten().nonzero().flatten().tolist() for _ in range(3)]
    assert kept == [list(range(12)), theirs, list(range(12))]


def test_of_a_method_that_does_not_rank_every_other_token_counts() -> None:
    features = torch.randn(GRID.tokens, 8)
    kept = VidCom2().keep(features, GRID, RATE).flatten().nonzero().flatten().tolist()
    out = next(token for token in range(GRID.tokens) if token not in kept)
    choice = ServersChoice([[*kept[1:], out]], VidCom2())
    assert choice.keep(features, GRID, RATE).flatten().nonzero().flatten().tolist() == kept
    assert (choice.ties, choice.others) == (0, 1)
