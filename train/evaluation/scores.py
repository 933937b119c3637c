"""Accuracies with confidence intervals, and their differences between two models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from train.evaluation.answers import Answer
from train.evaluation.questions import Question

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Part:
    """Accuracy over some of the questions and its 95 % confidence interval."""

    accuracy: float
    low: float
    high: float
    answers: int


@dataclass(frozen=True)
class Score(Part):
    """The accuracy and the loss at one rate."""

    rate: float
    loss: float  # per labelled token
    kept: float  # fraction of all tokens, including text, that remain after pruning
    kinds: dict[str, Part] = field(default_factory=dict)  # by kind of question, if the data names kinds

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """Our accuracy minus another model's at one rate, on the same questions."""

    rate: float
    difference: float
    low: float
    high: float
    p: float  # probability of a difference this large if both models are equally good
    answers: int


def scores(answers: Iterable[Answer], questions: Mapping[str, Question]) -> list[Score]:
    """One Score per rate, lowest first. `questions` maps keys to questions. Raise ValueError without answers."""
    by_rate: dict[float, list[Answer]] = {}
    for answer in answers:
        by_rate.setdefault(answer.rate, []).append(answer)
    if not by_rate:
        raise ValueError("nothing to evaluate: no sample of the evaluation data has a usable answer")
    return [_score(rate, by_rate[rate], questions) for rate in sorted(by_rate)]


def differences(
    ours: Iterable[Answer], theirs: Iterable[Answer], questions: Mapping[str, Question]
) -> list[Difference]:
    """The differences at all common rates.

    Raise ValueError if there is no common rate, or if their answers lack one of our questions.
    """
    their_scores = {answer.key: answer.score for answer in theirs}
    by_rate: dict[float, list[Answer]] = {}
    for answer in ours:
        by_rate.setdefault(answer.rate, []).append(answer)
    shared = sorted(by_rate.keys() & {rate for _, rate in their_scores})
    if not shared:
        raise ValueError(f"has no answers at the rates {sorted(by_rate)}: evaluate both models at the same rates")
    if missing := sum(answer.key not in their_scores for rate in shared for answer in by_rate[rate]):
        total = sum(len(by_rate[rate]) for rate in shared)
        raise ValueError(f"lacks {missing} of {total} answers: evaluate both models on the same data")
    return [_difference(rate, by_rate[rate], their_scores, questions) for rate in shared]


def areas_of(answers: Iterable[Answer], questions: Mapping[str, Question]) -> list[float]:
    """evs.score_area of every video, in the order of the data."""
    by_video: dict[str, Sequence[float]] = {}
    for answer in answers:  # answers of an earlier version have none
        by_video[questions[answer.question].video] = answer.areas or by_video.get(questions[answer.question].video, ())
    return list(chain.from_iterable(by_video.values()))


def _score(rate: float, answers: Sequence[Answer], questions: Mapping[str, Question]) -> Score:
    kinds = sorted({questions[answer.question].kind for answer in answers} - {""})
    return Score(
        **asdict(_part(answers, questions)),
        rate=rate,
        loss=sum(answer.loss for answer in answers) / sum(answer.targets for answer in answers),
        kept=sum(answer.kept for answer in answers) / sum(answer.tokens for answer in answers),
        kinds={kind: _part([a for a in answers if questions[a.question].kind == kind], questions) for kind in kinds},
    )


def _part(answers: Sequence[Answer], questions: Mapping[str, Question]) -> Part:
    sums_C, counts_C = _by_video(answers, [answer.score for answer in answers], questions)
    return Part(float(sums_C.sum() / counts_C.sum()), *_interval(sums_C, counts_C), len(answers))


def _difference(
    rate: float, answers: Sequence[Answer], their_scores: Mapping[Any, float], questions: Mapping[str, Question]
) -> Difference:
    sums_C, counts_C = _by_video(answers, [a.score - their_scores[a.key] for a in answers], questions)
    mean = float(sums_C.sum() / counts_C.sum())
    low, high = _bootstrap(sums_C, counts_C)
    return Difference(rate, mean, low, high, _chance(sums_C), len(answers))


def _by_video(
    answers: Sequence[Answer], values: Sequence[float], questions: Mapping[str, Question]
) -> tuple[np.ndarray, np.ndarray]:
    """([C] sums, [C] counts) of the values of each video's answers."""
    names = [questions[answer.question].video for answer in answers]
    _, cluster = np.unique(names, return_inverse=True)
    return np.bincount(cluster, weights=np.array(values)), np.bincount(cluster)


def _interval(sums_C: np.ndarray, counts_C: np.ndarray) -> tuple[float, float]:
    """A bootstrap interval over videos, or the exact one if all answers are right or all are wrong."""
    edge = (1 - LEVEL) / 2
    if (sums_C == 0).all():
        return 0.0, float(1 - edge ** (1 / len(sums_C)))
    if (sums_C == counts_C).all():
        return float(edge ** (1 / len(sums_C))), 1.0
    return _bootstrap(sums_C, counts_C)


def _bootstrap(sums_C: np.ndarray, counts_C: np.ndarray) -> tuple[float, float]:
    def mean(random: np.random.Generator) -> float:
        drawn = random.integers(len(sums_C), size=len(sums_C))
        return sums_C[drawn].sum() / counts_C[drawn].sum()

    edge = 50 * (1 - LEVEL)
    low, high = np.percentile(_drawn(mean), [edge, 100 - edge])
    return float(low), float(high)


def _chance(sums_C: np.ndarray) -> float:
    """The fraction of random signs of the videos' differences whose sum is at least as large. With one answer per video
    this is McNemar's test."""
    differing = sums_C[sums_C != 0]
    drawn = _drawn(lambda random: abs(random.choice((-1, 1), size=len(differing)) @ differing))
    return float((1 + (drawn >= abs(differing.sum()) - 1e-9).sum()) / (1 + DRAWS))


def _drawn(statistic: Callable[[np.random.Generator], float]) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.array([statistic(random) for _ in range(DRAWS)])
