"""The area under the ROC curve of a method's scores, for tokens whose pixels changed."""

from __future__ import annotations

import pytest
import torch

from evs.score_area import score_area

CHANGE = torch.tensor([[[99, 99, 99, 99]], [[0, 100, 4, 50]]])  # the first grid is not compared with any


def scores(*second: float) -> torch.Tensor:
    return torch.tensor([[[255.0] * 4], [list(second)]], dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("second", "area"),
    [((0, 1, 0.5, 0.75), 1.0), ((1, 0, 1, 0), 0.0), ((1, 1, 1, 1), 0.5), ((0, 1, 0.5, 0.5), 0.875)],
)
def test_an_area_is_the_probability_that_a_changed_token_scores_higher_and_ties_count_half(second, area):
    assert score_area(scores(*second), CHANGE) == area


@pytest.mark.parametrize("change", [torch.zeros(2, 1, 4), torch.ones(2, 1, 4), torch.ones(1, 1, 4)])
def test_a_clip_in_which_nothing_or_everything_changes_has_no_area(change):
    assert score_area(torch.zeros_like(change), change) is None
