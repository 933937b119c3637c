"""The answers of a study's models, and which differences between recipes exceed chance and the spread over seeds."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from data.synthetic.stills import STILLS
from scripts.recipes.runs import Seed
from train.evaluation import scores
from train.evaluation.answers import Answer
from train.evaluation.answers import read as read_answers
from train.evaluation.questions import Question
from train.evaluation.report import answers_of
from train.reports.curve import from_results
from train.reports.equal_tokens import EqualTokens
from train.reports.summary import read_lines, summarize

SIGNIFICANCE = 0.05  # largest p of a difference that counts


@dataclass(frozen=True)
class Result:
    """The answers of one model, trained with one seed, at all rates."""

    name: str
    seed: int
    answers: tuple[Answer, ...]
    kinds: Mapping[str, str]  # of question, by sample
    steps: int
    operations: float  # of its training, in total
    stills: tuple[Answer, ...] = ()  # on images and text, at rate 0
    area: float | None = None  # mean evs.score_area of the held-out videos
    baselines: tuple[EqualTokens, ...] = ()

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
class Difference:
    """Mean accuracy over rates of one recipe minus that of another, on the same questions of the same seeds."""

    paired: scores.Difference
    by_seed: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.by_seed)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one seed."""
        return stdev(self.by_seed) if len(self.by_seed) > 1 else None

    @property
    def counts(self) -> bool | None:
        """True if it exceeds its spread and the paired test finds it significant; None for one seed."""
        return None if self.spread is None else abs(self.mean) > self.spread and self.paired.p < SIGNIFICANCE


def read(seed: Seed, name: str, reduced: str | None = None) -> Result:
    """The result of a recipe: pruned, or with `reduced` on reduced videos instead."""
    rows = read_lines(seed.held_out)
    kinds, run, path = kinds_of(rows), seed.folder / name / "run", seed.result(name)
    done = sum(row.get("operations", 0) for row in read_lines(run / "metrics.jsonl"))
    measured = json.loads(path.read_text())
    answers = [answer for answer in answers_of(path) if reduced is None or answer.rate == 0]
    for rate in (score["rate"] for score in measured["scores"] if score["rate"] and reduced):
        answers += [
            replace(answer, rate=rate) for answer in read_answers(path.with_suffix(f".{reduced}_{rate:g}.jsonl"))
        ]
    answers = [replace(answer, question=answer.sample) for answer in answers]  # each row has one question
    return Result(
        name,
        seed.number,
        tuple(answer for answer in answers if kinds[answer.sample] not in STILLS),
        kinds,
        summarize(run).steps,
        done,
        tuple(answer for answer in answers if kinds[answer.sample] in STILLS and answer.rate == 0),
        measured.get("score_area", {}).get("mean"),
        from_results(path).baselines,
    )


def kinds_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {row["id"]: row["kind"] for row in rows}


def on_stills(results: Sequence[Result], kind: str | None = None) -> list[Result]:
    """The results on images and text, of one kind or of both."""
    return [
        replace(one, answers=tuple(answer for answer in one.stills if kind in (None, one.kinds[answer.sample])))
        for one in results
    ]


def difference(ours: Sequence[Result], theirs: Sequence[Result]) -> Difference:
    """`ours` minus `theirs`: results of the same seeds in the same order, on the same questions at the same rates."""
    by_seed = tuple(a.accuracy - b.accuracy for a, b in zip(ours, theirs, strict=True))
    answers = _pooled(ours)
    (paired,) = scores.differences(answers, _pooled(theirs), _questions(answers))
    return Difference(paired, by_seed)


def _pooled(results: Sequence[Result]) -> list[Answer]:
    """The answers of all seeds and rates, renamed such that each answers a different question at rate 0."""
    return [
        replace(
            answer,
            rate=0.0,
            question=f"{result.seed}/{answer.rate}/{answer.question}",
            sample=f"{result.seed}/{answer.sample}",
        )
        for result in results
        for answer in result.answers
    ]


def _questions(answers: Sequence[Answer]) -> dict[str, Question]:
    """Questions by key. Samples of one video share its number, which precedes the kind in their id."""
    return {
        answer.question: Question(answer.question, answer.sample, 0, "", None, (), answer.sample.rpartition("-")[0])
        for answer in answers
    }
