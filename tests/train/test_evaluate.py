"""An answer is right when greedy decoding would write it, or when its letter is the likeliest of those offered."""

from __future__ import annotations

import torch

from data.types import IGNORE, Batch
from train.evaluate import answers_correct


def batch(labels: list[int], choices: tuple[tuple[int, ...], ...]) -> Batch:
    n, empty = len(labels), torch.zeros(0, 3, dtype=torch.long)
    ids = torch.zeros(n, dtype=torch.long)
    return Batch(("x",), ids, torch.tensor(labels), ids, None, empty, torch.zeros(0), None, empty, choices)


def logits(predicted: list[int], vocabulary: int = 8) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), vocabulary).float()


def test_every_token_of_a_free_answer_must_be_right():
    x = batch([IGNORE, 3, 4, IGNORE, 5, 6, IGNORE, IGNORE, 7], ((), (), ()))
    assert answers_correct(logits([3, 4, 5, 0, 7]), x).tolist() == [True, False, True]


def test_a_choice_is_the_likeliest_of_the_offered_letters():
    x = batch([IGNORE, 3, 4, IGNORE, 5, 4], ((3, 5), (3, 5)))
    scores = logits([7, 0, 7, 0])  # the likeliest token is no letter at all
    scores[0, 3], scores[2, 3] = 0.5, 0.5
    assert answers_correct(scores, x).tolist() == [True, False]


def test_a_batch_without_answers_has_none():
    assert answers_correct(torch.zeros(0, 8), batch([IGNORE, IGNORE], ())).tolist() == []
