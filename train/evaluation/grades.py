"""How right the answers of a batch are where none has to be written: one Grade an assistant turn."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from data.types import IGNORE, Batch
from train.task import answer_begins


class Grade(NamedTuple):
    metric: str  # "choice" or "greedy" (train.evaluation.evaluation)
    score: float
    tokens: list[int]  # the chosen letter, or the likeliest tokens, each given the right ones before it
    loss: float  # natural, summed over the answer
    targets: int


def grades(logits_TV: Tensor, batch: Batch) -> list[Grade]:
    """`logits_TV` at the labelled tokens."""
    labels_T = batch.labels_N[batch.labels_N != IGNORE]
    losses = cross_entropy(logits_TV.float(), labels_T.to(logits_TV.device), reduction="none").tolist()
    likeliest, labels = logits_TV.argmax(-1).tolist(), labels_T.tolist()
    found: list[Grade] = []
    begin = 0
    for length, choices in zip(answer_lengths(batch.labels_N), batch.choices):
        span = slice(begin, begin + length)
        metric, tokens, right = "greedy", likeliest[span], likeliest[span] == labels[span]
        if choices:
            best = int(logits_TV[begin, list(choices)].argmax())
            metric, tokens, right = "choice", [choices[best]], choices[best] == labels[begin]
        found.append(Grade(metric, float(right), tokens, sum(losses[span]), length))
        begin += length
    return found


def answer_lengths(labels_N: Tensor) -> list[int]:
    """Labelled tokens of every answer, first to last."""
    begins = torch.tensor(answer_begins(labels_N))
    places = (labels_N != IGNORE).nonzero().squeeze(1)
    return torch.searchsorted(begins, places, right=True).bincount()[1:].tolist()
