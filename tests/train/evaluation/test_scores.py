"""Accuracies, their intervals, the rate to serve at, and the difference from another model."""

from __future__ import annotations

import pytest

from train.evaluation.answers import Answer
from train.evaluation.questions import Question
from train.evaluation.report import curve, words
from train.evaluation.scores import differences, scores
from train.reports.curve import Curve

QUESTIONS = {f"q{i}": Question(f"q{i}", f"s{i}", 0, "ab"[i % 2], None, ("x",), f"video{i // 2}") for i in range(400)}


def answers(right: int, rate: float = 0.0, questions: int = 400) -> list[Answer]:
    return [Answer(f"q{i}", rate, f"s{i}", float(i < right), "choice", "", 1.0, 2, 5, 10) for i in range(questions)]


def test_a_rate_is_scored_over_all_questions_and_over_each_kind():
    (score,) = scores(answers(200), QUESTIONS)
    assert (score.accuracy, score.loss, score.kept, score.answers) == (0.5, 0.5, 0.5, 400)
    assert {kind: part.answers for kind, part in score.kinds.items()} == {"a": 200, "b": 200}


def test_questions_on_one_video_widen_the_interval_since_they_are_not_independent():
    alone = {key: Question(key, key, 0, "", None, (), key) for key in QUESTIONS}
    (together,), (apart,) = scores(answers(200), QUESTIONS), scores(answers(200), alone)
    assert together.high - together.low == pytest.approx(2**0.5 * (apart.high - apart.low), rel=0.1)
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)  # the normal approximation


@pytest.mark.parametrize("right", [0, 400])
def test_an_interval_has_a_width_where_all_is_right_or_wrong(right):
    (score,) = scores(answers(right), QUESTIONS)
    assert score.high - score.low == pytest.approx(1 - 0.025 ** (1 / 200))


def test_the_rate_to_serve_at_is_within_one_point_of_no_pruning():
    found = scores([*answers(390), *answers(387, 0.5), *answers(386, 0.75), *answers(300, 0.9)], QUESTIONS)
    assert curve("", found).recommended() == 0.75
    assert curve("", found[1:]).recommended() is None


def test_the_rate_to_serve_at_is_within_the_interval_of_no_pruning():
    accuracy = {0.0: 0.9, 0.5: 0.897, 0.75: 0.893}
    assert Curve("", accuracy, {0.0: (0.895, 0.905)}).recommended() == 0.5
    assert Curve("", accuracy).recommended() == 0.75


def test_another_model_is_compared_question_by_question():
    (same,) = differences(answers(200), answers(200), QUESTIONS)
    (better,) = differences(answers(240), answers(200), QUESTIONS)
    assert (same.difference, same.p) == (0, 1)
    assert better.difference == pytest.approx(0.1) and better.low > 0 and better.p < 0.01


def test_results_of_another_benchmark_are_refused():
    with pytest.raises(ValueError, match="lacks 100 of 400 answers"):
        differences(answers(200), answers(200, questions=300), QUESTIONS)
    with pytest.raises(ValueError, match="has no answers at the rates"):
        differences(answers(200), answers(200, rate=0.5), QUESTIONS)


def test_without_rate_zero_no_rate_to_serve_at_is_named():
    text = words("ours", scores(answers(200, 0.5), QUESTIONS), [], None)
    assert text.splitlines()[-1] == "no rate to serve at can be named without rate 0: add it to rates"
