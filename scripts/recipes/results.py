"""The answers of a study's models, and which differences between recipes exceed chance and the spread over seeds."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from data.encoding.reduction import REDUCTIONS
from data.synthetic.stills import STILLS
from scripts.recipes.runs import Seed
from scripts.recipes.table import SERVED, TRANSFER_RATES, Recipe
from train.evaluation import scores
from train.evaluation.answers import Answer
from train.evaluation.answers import read as read_answers
from train.evaluation.questions import Question
from train.evaluation.report import answers_of
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
    stills: tuple[Answer, ...] = ()  # on images and text, at rate 0
    area: float | None = None  # mean evs.score_area of the held-out videos
    reduced: Mapping[str, tuple[Answer, ...]] = field(default_factory=dict)  # by data.encoding.reduction
    kept: Mapping[tuple[str, float], float] = field(default_factory=dict)  # fraction of tokens of `reduced`, by rate
    served: Mapping[str, float] = field(default_factory=dict)  # accuracy at TRANSFER_RATES by method of SERVED

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


Results = Mapping[str, Sequence[Result]]  # by recipe, one per seed


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


def read(seed: Seed, name: str, recipe: Recipe | None = None) -> Result:
    """The result of a model: pruned, or on reduced videos if its recipe trains on them. None: the base."""
    path, run, kinds = seed.result(name), seed.folder / name / "run", kinds_of(read_lines(seed.held_out))
    measured, answers = json.loads(path.read_text()), _answers(path.with_suffix(".jsonl"))
    rates = [score["rate"] for score in measured["scores"] if score["rate"]]
    reduced = {kind: tuple(_videos(_reduced(path, kind, rates), kinds)) for kind in REDUCTIONS}
    videos = tuple(_videos(answers, kinds))
    if recipe is not None and recipe.reduced is not None:
        videos = (*(answer for answer in videos if answer.rate == 0), *reduced[recipe.reduced])
    return Result(
        name,
        seed.number,
        videos,
        kinds,
        summarize(run).steps,
        tuple(answer for answer in answers if kinds[answer.sample] in STILLS and answer.rate == 0),
        measured.get("score_area", {}).get("mean"),
        reduced,
        {(one["baseline"], one["rate"]): one["kept"] for one in measured.get("baselines", [])},
        {} if recipe is None or recipe.native is None else served_of(seed, recipe, kinds),
    )


def _answers(log: Path) -> list[Answer]:
    return [replace(answer, question=answer.sample) for answer in read_answers(log)]  # each row has one question


def _reduced(path: Path, kind: str, rates: Iterable[float]) -> Iterator[Answer]:
    """The answers to reduced videos, as answers at the rates whose tokens they have. A rate out of reach has none."""
    for rate in rates:
        log = path.with_suffix(f".{kind}_{rate:g}.jsonl")
        yield from (replace(answer, rate=rate) for answer in (_answers(log) if log.is_file() else ()))


def served_of(seed: Seed, recipe: Recipe, kinds: Mapping[str, str]) -> dict[str, float]:
    """Mean accuracy on videos at TRANSFER_RATES, by method of SERVED."""
    paths = {name: seed.result(recipe.name, None if name == recipe.native else name) for name in SERVED}
    return {
        name: fmean(answer.score for answer in _videos(answers_of(path), kinds) if answer.rate in TRANSFER_RATES)
        for name, path in paths.items()
    }


def _videos(answers: Iterable[Answer], kinds: Mapping[str, str]) -> list[Answer]:
    return [answer for answer in answers if kinds[answer.sample] not in STILLS]


def kinds_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {row["id"]: row["kind"] for row in rows}


def on_stills(results: Sequence[Result], kind: str | None = None) -> list[Result]:
    """The results on images and text, of one kind or of both."""
    return [
        replace(one, answers=tuple(answer for answer in one.stills if kind in (None, one.kinds[answer.sample])))
        for one in results
    ]


def difference(ours: Sequence[Result], theirs: Sequence[Result]) -> Difference:
    """`ours` minus `theirs`: results of the same seeds in the same order, on the questions and rates that both have."""
    pairs = [(common_answers(a, b), common_answers(b, a)) for a, b in zip(ours, theirs, strict=True)]
    ours, theirs = zip(*pairs)
    by_seed = tuple(a.accuracy - b.accuracy for a, b in pairs)
    answers = _pooled(ours)
    (paired,) = scores.differences(answers, _pooled(theirs), _questions(answers))
    return Difference(paired, by_seed)


def common_answers(result: Result, reference: Result) -> Result:
    """The answers of `result` to questions that `reference` has answered at the same rate."""
    keys = {answer.key for answer in reference.answers}
    return replace(result, answers=tuple(answer for answer in result.answers if answer.key in keys))


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
