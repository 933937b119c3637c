"""The metrics of free answers, by the cases that tell them apart."""

from __future__ import annotations

import pytest

from data.answer_metrics import METRICS


@pytest.mark.parametrize(
    ("metric", "written", "accepted", "score"),
    [
        ("exact", "The Dog.", ["dog"], 1),
        ("exact", "a big dog", ["dog"], 0),
        ("exact", "the", ["The"], 1),
        ("contains", "It is a dog, I think", ["cat", "dog"], 1),
        ("contains", "dogs", ["dog"], 0),
        ("anls", "hallo", ["hello"], 0.8),
        ("anls", "cat", ["dog"], 0),
        ("anls", "", ["dog"], 0),
        ("numeric", "about 1,200 cars", ["1200"], 1),
        ("numeric", "-3.50", ["-3.5"], 1),
        ("numeric", "none", ["0"], 0),
        ("numeric", "12", ["1"], 0),
        ("f1", "red big car", ["a red car"], 0.8),
        ("f1", "boat", ["car", "boat"], 1),
    ],
)
def test_a_metric_grades_from_nothing_to_one(metric, written, accepted, score):
    assert METRICS[metric](written, accepted) == pytest.approx(score)
