"""Pruning against its baselines in words: differences that count, ties, and what cannot be reached."""

from __future__ import annotations

from train.reports.curve import Curve, baseline_curves
from train.reports.equal_tokens import EqualTokens, equal_tokens_rows, equal_tokens_sentence

FRAMES = EqualTokens("frames", 0.75, 0.25, 0.25, 1000, "", 1000, 0.9, 0.88, 0.92, 0.031, 0.018, 0.044, 0.001)
PIXELS = EqualTokens("pixels", 0.75, 0.24, 0.25, 1000, "", 1000, 0.94, 0.9, 0.96, -0.009, -0.02, 0.002, 0.1)
LOST = EqualTokens("frames", 0.9, 0.0, 0.1, 1000, "fewer than min_frames=4")
PART = EqualTokens(
    "pixels", 0.9, 0.1, 0.1, 1000, "below the smallest frame", 412, 0.5, 0.4, 0.6, -0.1, -0.2, -0.05, 0.01
)


def test_one_sentence_tells_differences_that_count_from_ties():
    assert equal_tokens_sentence([FRAMES, PIXELS, LOST, PART]) == (
        "At 25 % of the video tokens, pruning is 3.1 points (1.8 to 4.4) above fewer frames "
        "and not distinguishable from smaller frames (-2.0 to +0.2 points)."
    )
    assert equal_tokens_sentence([PART]).endswith(
        "10.0 points (5.0 to 20.0) below smaller frames on 412 of 1000 questions."
    )


def test_a_baseline_out_of_reach_is_named_and_never_drawn():
    header, _, row = equal_tokens_rows([FRAMES, PIXELS, LOST, PART])
    assert header[2:] == ["fewer frames", "smaller frames"]
    assert row[2] == "not reached: fewer than min_frames=4"
    assert row[3].endswith("412 of 1000 questions, the others below the smallest frame")
    drawn = baseline_curves(Curve("x", {}, baselines=(FRAMES, PIXELS, LOST, PART)))
    assert [(one.name, one.accuracy) for one in drawn] == [
        ("x: fewer frames, not pruned", {0.75: 0.9}),
        ("x: smaller frames, not pruned", {0.76: 0.94}),
    ]


def test_without_any_baseline_in_reach_there_is_no_sentence():
    assert equal_tokens_sentence([LOST]) == ""
