"""Grades the answers of a batch without generation: one Grade per assistant turn."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from data.types import IGNORE, Batch
from train.task import answer_begins


class Grade(NamedTuple):
    """The grade of one answer."""

    metric: str  # "choice" or "greedy" (train.evaluation.evaluation)
    score: float
    tokens: list[int]  # the chosen letter, or the arg max at each position given the correct tokens before it
    loss: float  # cross-entropy in nats, summed over the answer
    targets: int


def grades(logits_TV: Tensor, batch: Batch) -> list[Grade]:
    """The grades of a batch's answers from the logits at its labelled tokens."""
    labels_T = batch.labels_N[batch.labels_N != IGNORE]
    losses = cross_entropy(logits_TV.float(), labels_T.to(logits_TV.device), reduction="none").tolist()
    likeliest, labels = logits_TV.argmax(-1).tolist(), labels_T.tolist()
    results: list[Grade] = []
    begin = 0
    for length, choices in zip(answer_lengths(batch.labels_N), batch.choices):
        span = slice(begin, begin + length)
        metric, tokens, right = "greedy", likeliest[span], likeliest[span] == labels[span]
        if choices:
            best = int(logits_TV[begin, list(choices)].argmax())
            metric, tokens, right = "choice", [choices[best]], choices[best] == labels[begin]
        results.append(Grade(metric, float(right), tokens, sum(losses[span]), length))
        begin += length
    return results


def answer_lengths(labels_N: Tensor) -> list[int]:
    """The number of labelled tokens of every answer, in order."""
    begins = torch.tensor(answer_begins(labels_N))
    positions_T = (labels_N != IGNORE).nonzero().squeeze(1)
    return torch.searchsorted(begins, positions_T, right=True).bincount()[1:].tolist()
