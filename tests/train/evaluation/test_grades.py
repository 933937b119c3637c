"""An answer is right when greedy decoding would write it, or when its letter is the likeliest of those offered."""

from __future__ import annotations

import torch

from data.types import IGNORE, Batch
from train.evaluation.grades import grades


def batch(labels: list[int], choices: tuple[tuple[int, ...], ...]) -> Batch:
    ids = torch.zeros(len(labels), dtype=torch.long)
    return Batch(ids=("x",), input_ids_N=ids, labels_N=torch.tensor(labels), segment_N=ids, choices=choices)


def logits(predicted: list[int], vocabulary: int = 8) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), vocabulary).float()


def right(scores: torch.Tensor, x: Batch) -> list[float]:
    return [grade.score for grade in grades(scores, x)]


def test_every_token_of_a_free_answer_must_be_right():
    x = batch([IGNORE, 3, 4, IGNORE, 5, 6, IGNORE, IGNORE, 7], ((), (), ()))
    assert right(logits([3, 4, 5, 0, 7]), x) == [1, 0, 1]


def test_a_choice_is_the_likeliest_of_the_offered_letters():
    x = batch([IGNORE, 3, 4, IGNORE, 5, 4], ((3, 5), (3, 5)))
    scores = logits([7, 0, 7, 0])  # the likeliest token is no letter at all
    scores[0, 3], scores[2, 3] = 0.5, 0.5
    assert right(scores, x) == [1, 0]
    assert [grade.tokens for grade in grades(scores, x)] == [[3], [3]]


def test_losses_and_lengths_are_each_answers_own():
    x = batch([IGNORE, 3, 4, IGNORE, 5], ((), ()))
    first, second = grades(logits([0, 0, 5]), x)
    assert (first.targets, second.targets) == (2, 1) and first.loss > 2 * second.loss > 0


def test_losses_of_bfloat16_logits_are_not_rounded_to_it():
    x, scores = batch([IGNORE, 3, 4], ((),)), torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    (grade,), (exact,) = grades(scores, x), grades(scores.float(), x)
    assert grade.loss == exact.loss


def test_a_batch_without_answers_has_none():
    assert grades(torch.zeros(0, 8), batch([IGNORE, IGNORE], ())) == []
