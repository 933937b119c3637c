from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evs import FrameDelta
from evs.generate import Generation
from scripts.serving.compare import Verdict, compare, share_of_ties, summary
from scripts.serving.ours import Answer
from scripts.serving.ties import ServersChoice

SAID = Generation((7, 8), ({7: -0.5}, {8: -0.25}), prompt_tokens=5, kept_tokens=2, frames=())
SERVED: dict[str, Any] = {
    "prompt_ids": [1, 2],
    "tokens": [7, 8],
    "logprobs": [{"7": -0.5}, {"8": -0.25}],
    "positions": [[0, 4, 5]] * 3,
}


def ours(ties: int = 0, gap: float = 0.0, others: int = 0) -> Answer:
    return Answer(SAID, [[0, 4, 5]] * 3, ServersChoice([], FrameDelta(), ties, gap, others))


def test_equal_answers_agree() -> None:
    assert compare(ours(), SERVED, 1e-3) == Verdict("0.0e+00", True)


def test_a_tie_is_shown_and_is_no_fault() -> None:
    assert compare(ours(ties=2), SERVED, 1e-3) == Verdict("0.0e+00, tie of 2", True, ties=2)


def test_the_share_of_ties_counts_kept_tokens_of_videos() -> None:
    verdicts = [Verdict("", True, ties=1, kept=150), Verdict("", True, kept=50), Verdict("", True)]
    assert share_of_ties(verdicts) == "ties at the cut: 1 of 200 kept video tokens (0.50%)"
    assert share_of_ties(verdicts[2:]) == ""


def test_a_tie_hides_no_fault_beside_it() -> None:
    moved = {**SERVED, "positions": [[0, 3, 5]] * 3}
    assert compare(ours(ties=2), moved, 1e-3) == Verdict("0.0e+00, tie of 2, 1 moved", False, ties=2)


def test_other_tokens_kept_against_the_scores_are_named() -> None:
    moved = {**SERVED, "positions": [[0, 3, 5]] * 3}
    assert compare(ours(gap=0.02, others=1), moved, 1e-3).text == "0.0e+00, 1 moved, kept 1 others by 2e-02 of score"
    assert not compare(ours(others=1), SERVED, 1e-3).agrees


def test_answers_may_part_where_two_tokens_are_equally_likely() -> None:
    said = replace(SAID, logprobs=({7: -0.5}, {8: -0.25, 9: -0.27}))
    answer, served = replace(ours(), generation=said), {**SERVED, "tokens": [7, 9]}
    assert compare(answer, served, 0.03) == Verdict("0.0e+00, first 1 tokens", True)
    assert not compare(answer, served, 0.01).agrees


def test_a_file_that_the_server_cannot_read_is_named_and_no_difference() -> None:
    verdict = compare(ours(), {"unread": "decodes no frame"}, 1e-3)
    assert verdict == Verdict("not read by the server", True, "decodes no frame", compared=False)


def test_a_limit_of_the_server_is_no_difference() -> None:
    verdict = compare(ours(), {"limit": "exceeds the encoder cache size 2048"}, 1e-3)
    assert verdict == Verdict("too long for the server", True, "exceeds the encoder cache size 2048", compared=False)
    assert summary([verdict, compare(ours(), SERVED, 1e-3)], 1e-3) == ""
    assert "nothing was compared" in summary([verdict], 1e-3)


@pytest.mark.parametrize("change", [{"prompt_ids": [1]}, {"tokens": [7, 9]}, {"error": "KeyError: 'x'"}])
def test_faults_are_counted(change) -> None:
    verdict = compare(ours(), {**SERVED, **change}, 1e-3)
    assert not verdict.agrees
    assert summary([verdict], 1e-3) == "1 of 1 differ by more than 0.001"
