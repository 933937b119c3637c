"""Evaluates a model unpruned on videos with fewer or smaller frames, at the number of tokens that pruning keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from data.encoding.reduction import REDUCTIONS, Reduced, Reduction
from data.sources.headers import read_headers
from data.types import MediaError, Sample, VideoRef
from evs.methods import Method
from evs.types import Grid
from train.collectives import from_main
from train.evaluation.answers import Answer, Answers
from train.evaluation.evaluation import Evaluation, Outcome
from train.evaluation.scores import differences, scores
from train.reports.equal_tokens import EqualTokens

REASONS = 3  # named in the table


@dataclass(frozen=True)
class Baseline:
    """The samples whose videos a reduction brings to the tokens of one pruning rate."""

    kind: str  # of REDUCTIONS
    rate: float
    samples: list[Sample]
    kept: float  # fraction of the tokens of their videos that is left
    pruned_kept: float  # fraction that pruning leaves of all videos
    lost: Counter[str] = field(default_factory=Counter)  # samples that cannot be reduced, by reason


@dataclass(frozen=True)
class Baselines:
    """Makes and evaluates the baselines of an evaluation, on its samples that have a video."""

    evaluation: Evaluation
    method: Method

    @cached_property
    def samples(self) -> list[Sample]:
        """The samples with a video."""
        samples = self.evaluation.samples
        return [sample for sample in map(samples.__getitem__, range(len(samples))) if _videos(sample)]

    @cached_property
    def _headers(self) -> dict[Any, Any]:
        """The header of every video, or the MediaError that makes it unusable, equal on all ranks."""
        refs = [ref for sample in self.samples for ref in _videos(sample)]
        return from_main(self.evaluation.engine, lambda: read_headers(refs, self.evaluation.encoder.limits))

    def _reduction(self, ref: VideoRef) -> Reduction:
        """Raise MediaError for a video whose header cannot be read."""
        if isinstance(header := self._headers[ref], MediaError):
            raise header
        return Reduction(self.evaluation.encoder, ref, header)

    def make(self, kind: str, rate: float) -> Baseline:
        """The baseline at a rate: a sample is lost if one of its videos cannot be reduced."""
        samples, lost, totals, every = [], Counter[str](), Counter[str](), Counter[str]()
        for sample in self.samples:
            try:
                every += (counts := self._counts(sample, rate))
                reduced = {ref: self._reduced(ref, kind, rate) for ref in _videos(sample)}
            except MediaError as error:
                lost[str(error)] += 1
                continue
            totals += counts + Counter(reduced=sum(one.tokens for one in reduced.values()))
            refs: dict[Any, Any] = {ref: one.ref for ref, one in reduced.items()}
            turns = (replace(turn, parts=tuple(refs.get(part, part) for part in turn.parts)) for turn in sample.turns)
            samples.append(replace(sample, turns=tuple(turns)))
        kept, pruned = totals["reduced"] / max(1, totals["whole"]), every["pruned"] / max(1, every["whole"])
        return Baseline(kind, rate, samples, kept, pruned, lost)

    def ask(self, baseline: Baseline, load_task: Callable[[], nn.Module], log: Answers | None = None) -> Outcome:
        """The answers at rate 0 to its samples, as answers of `evaluation` at the baseline's rate.

        The model is loaded only if an answer is missing.
        """
        if not baseline.samples:
            return Outcome([], [])
        asked, whole = self.evaluation.with_samples(baseline.samples, (0.0,)), self.evaluation
        existing = log.begin() if log else []
        missing = asked.missing({answer.key for answer in existing})
        outcome = asked.ask(load_task(), existing, log) if missing else asked.recall(existing)
        if log:
            log.finish(outcome.answers)
        keys = {(question.sample, question.turn): question.key for question in whole.by_key.values()}
        answers = [
            replace(answer, rate=baseline.rate, question=keys[answer.sample, asked.by_key[answer.question].turn])
            for answer in outcome.answers
        ]
        return replace(outcome, answers=answers)

    def compare(self, baseline: Baseline, outcome: Outcome, pruned: Sequence[Answer]) -> EqualTokens:
        """Pruning against the baseline's answers, on the questions that both answered."""
        lost = baseline.lost + Counter(sample.reason for sample in outcome.lost)
        sizes = {sample.id for sample in self.samples}
        questions = sum(question.sample in sizes for question in self.evaluation.by_key.values())
        shared: dict[str, Any] = {"kept": baseline.kept, "pruned_kept": baseline.pruned_kept}
        shared |= {"baseline": baseline.kind, "rate": baseline.rate, "questions": questions}
        shared |= {"reason": ", ".join(reason for reason, _ in lost.most_common(REASONS))}
        theirs = {answer.key: answer for answer in outcome.answers}
        ours = [answer for answer in pruned if answer.key in theirs]
        if not ours:
            return EqualTokens(**shared)
        (score,) = scores([theirs[answer.key] for answer in ours], self.evaluation.by_key)
        (change,) = differences(ours, outcome.answers, self.evaluation.by_key)
        return EqualTokens(
            **shared,
            accuracy=score.accuracy,
            low=score.low,
            high=score.high,
            difference=change.difference,
            difference_low=change.low,
            difference_high=change.high,
            p=change.p,
            answers=len(ours),
        )

    def _counts(self, sample: Sample, rate: float) -> Counter[str]:
        """The tokens of a sample's videos, as they are and pruned."""
        sizes = [self._reduction(ref).whole for ref in _videos(sample)]
        return Counter(whole=sum(size.tokens for size in sizes), pruned=sum(self._pruned(size, rate) for size in sizes))

    def _pruned(self, size: Reduced, rate: float) -> int:
        return self.method.count(Grid(size.grids, 1, size.tokens // size.grids), rate)

    def _reduced(self, ref: VideoRef, kind: str, rate: float) -> Reduced:
        reduction = self._reduction(ref)
        whole = reduction.whole
        budget = self._pruned(whole, rate)
        return REDUCTIONS[kind](reduction, budget) if budget < whole.tokens else whole


def _videos(sample: Sample) -> list[VideoRef]:
    return [part for part in sample.media if isinstance(part, VideoRef)]
