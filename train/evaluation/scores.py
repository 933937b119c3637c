"""Answers -> accuracies with intervals, and the difference from another model's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from train.evaluation.answers import Answer
from train.evaluation.questions import Question

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Part:
    """Accuracy over some of the questions, and the interval that holds it with 95 %."""

    accuracy: float
    low: float
    high: float
    answers: int


@dataclass(frozen=True)
class Score(Part):
    """One rate's line of the curve."""

    rate: float
    loss: float  # per labelled token
    kept: float  # fraction of all tokens, text included, that the language model read
    kinds: dict[str, Part] = field(default_factory=dict)  # by kind of question, where the data names any

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """Of ours from another model's accuracy at one rate, on the same questions."""

    rate: float
    difference: float
    low: float
    high: float
    p: float  # of a difference as large where the two models are equally good
    answers: int


def scores(answers: Iterable[Answer], questions: Mapping[str, Question]) -> list[Score]:
    """One Score a rate, lowest first; `questions` by key. ValueError if there is no answer."""
    by_rate: dict[float, list[Answer]] = {}
    for answer in answers:
        by_rate.setdefault(answer.rate, []).append(answer)
    if not by_rate:
        raise ValueError("nothing to evaluate: no sample of the evaluation data has a usable answer")
    return [_score(rate, by_rate[rate], questions) for rate in sorted(by_rate)]


def differences(
    ours: Iterable[Answer], theirs: Iterable[Answer], questions: Mapping[str, Question]
) -> list[Difference]:
    """At every rate that both have. ValueError unless theirs hold all of our questions at one of our rates."""
    other = {answer.place: answer.score for answer in theirs}
    places: dict[float, list[Answer]] = {}
    for answer in ours:
        places.setdefault(answer.rate, []).append(answer)
    shared = sorted(places.keys() & {rate for _, rate in other})
    if not shared:
        raise ValueError(f"holds none of the rates {sorted(places)}: evaluate both at the same")
    if missing := sum(answer.place not in other for rate in shared for answer in places[rate]):
        asked = sum(len(places[rate]) for rate in shared)
        raise ValueError(f"lacks {missing} of {asked} answers, so it is of another benchmark: evaluate both on one")
    return [_difference(rate, places[rate], other, questions) for rate in shared]


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
    rate: float, answers: Sequence[Answer], other: Mapping[Any, float], questions: Mapping[str, Question]
) -> Difference:
    sums_C, counts_C = _by_video(answers, [a.score - other[a.place] for a in answers], questions)
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
    """Bootstrapped over videos; where all are right or all wrong it would have no width, and is the exact one."""
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
    """How often random signs of the videos' differences sum to as much: with one right or wrong answer a video,
    McNemar's test."""
    differing = sums_C[sums_C != 0]
    drawn = _drawn(lambda random: abs(random.choice((-1, 1), size=len(differing)) @ differing))
    return float((1 + (drawn >= abs(differing.sum()) - 1e-9).sum()) / (1 + DRAWS))


def _drawn(statistic: Callable[[np.random.Generator], float]) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.array([statistic(random) for _ in range(DRAWS)])
