"""What a study's runs reached, and which differences between recipes are more than chance and seeds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from scripts.recipes.runs import Seed
from train.evaluation.answers import Answer
from train.evaluation.questions import Question
from train.evaluation.report import answers_of
from train.evaluation.scores import Difference, differences
from train.reports.summary import read_lines, summarize

LEVEL = 0.05  # p below it is no chance


@dataclass(frozen=True)
class Result:
    """One model of one seed, by rate."""

    name: str
    seed: int
    answers: tuple[Answer, ...]
    kinds: Mapping[str, str]  # of question, by sample
    steps: int
    operations: float  # of its training

    @property
    def rates(self) -> list[float]:
        return sorted({answer.rate for answer in self.answers})

    @property
    def accuracy(self) -> float:
        return fmean(answer.score for answer in self.answers)

    def only(self, rates: Collection[float] | None = None, kinds: Collection[str] | None = None) -> Result:
        """The answers at those rates to questions of those kinds."""
        kept = (
            answer
            for answer in self.answers
            if (rates is None or answer.rate in rates) and (kinds is None or self.kinds[answer.sample] in kinds)
        )
        return replace(self, answers=tuple(kept))


@dataclass(frozen=True)
class Versus:
    """Mean accuracy over rates of one recipe less that of another, on the same questions of the same seeds."""

    paired: Difference
    by_seed: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.by_seed)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one seed."""
        return stdev(self.by_seed) if len(self.by_seed) > 1 else None

    @property
    def exceeds(self) -> bool | None:
        """Whether it is more than its spread, and no chance by the paired test; None for one seed."""
        return None if self.spread is None else abs(self.mean) > self.spread and self.paired.p < LEVEL


def read(seed: Seed, name: str) -> Result:
    rows = read_lines(seed.held_out)
    run = seed.folder / name / "run"
    done = sum(row.get("operations", 0) for row in read_lines(run / "metrics.jsonl"))
    answers = tuple(answers_of(seed.result(name)))
    return Result(name, seed.number, answers, kinds_of(rows), summarize(run).steps, done)


def kinds_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {row["id"]: row["kind"] for row in rows}


def versus(ours: Sequence[Result], theirs: Sequence[Result]) -> Versus:
    """Of the same seeds in the same order, on the same questions at the same rates."""
    by_seed = tuple(a.accuracy - b.accuracy for a, b in zip(ours, theirs, strict=True))
    one, other = _pooled(ours), _pooled(theirs)
    (paired,) = differences(one, other, _questions(one))
    return Versus(paired, by_seed)


def _pooled(results: Sequence[Result]) -> list[Answer]:
    """All answers as if at one rate, each to a question of its own."""
    return [
        replace(
            answer,
            rate=0.0,
            question=f"{each.seed}/{answer.rate}/{answer.question}",
            sample=f"{each.seed}/{answer.sample}",
        )
        for each in results
        for answer in each.answers
    ]


def _questions(answers: Sequence[Answer]) -> dict[str, Question]:
    """By key, with the video that samples share: its number stands before their kind."""
    return {
        answer.question: Question(answer.question, answer.sample, 0, "", None, (), answer.sample.rpartition("-")[0])
        for answer in answers
    }
