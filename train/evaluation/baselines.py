"""Evaluates a model unpruned on videos with fewer or smaller frames, at the number of tokens that pruning keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from data.encoding.reduction import REDUCTIONS, OutOfReach, Reduced, Reduction
from data.sources.headers import read_headers
from data.types import Sample, VideoRef
from evs.methods import Method
from evs.types import Grid
from train.evaluation.answers import Answer, Answers
from train.evaluation.evaluation import Evaluation
from train.evaluation.scores import differences, scores
from train.reports.equal_tokens import EqualTokens


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
        return [sample for sample in map(samples.__getitem__, range(len(samples))) if any(map(_is_video, sample.media))]

    @cached_property
    def _reductions(self) -> dict[VideoRef, tuple[Reduction, Reduced]]:
        """Of every video, its reduction and its size as it is."""
        encoder = self.evaluation.encoder
        refs = [ref for sample in self.samples for ref in sample.media if isinstance(ref, VideoRef)]
        headers: dict[Any, Any] = read_headers(refs, encoder.limits)
        reductions = {ref: Reduction(encoder, ref, header) for ref, header in headers.items()}
        return {ref: (reduction, reduction.whole) for ref, reduction in reductions.items()}

    def make(self, kind: str, rate: float) -> Baseline:
        """The baseline at a rate: a sample is lost if one of its videos cannot be reduced."""
        samples, lost, totals, every = [], Counter[str](), Counter[str](), Counter[str]()
        for sample in self.samples:
            every += (counts := self._counts(sample, rate))
            try:
                reduced = {ref: self._reduced(ref, kind, rate) for ref in sample.media if isinstance(ref, VideoRef)}
            except OutOfReach as error:
                lost[str(error)] += 1
                continue
            totals += counts + Counter(reduced=sum(one.tokens for one in reduced.values()))
            refs: dict[Any, Any] = {ref: one.ref for ref, one in reduced.items()}
            turns = (replace(turn, parts=tuple(refs.get(part, part) for part in turn.parts)) for turn in sample.turns)
            samples.append(replace(sample, turns=tuple(turns)))
        kept, pruned = totals["reduced"] / max(1, totals["whole"]), every["pruned"] / every["whole"]
        return Baseline(kind, rate, samples, kept, pruned, lost)

    def ask(self, baseline: Baseline, task: nn.Module, log: Answers | None = None) -> list[Answer]:
        """The answers at rate 0 to its samples, as answers of `evaluation` at the baseline's rate."""
        if not baseline.samples:
            return []
        asked, whole = self.evaluation.about(baseline.samples, (0.0,)), self.evaluation
        existing = log.begin() if log else []
        missing = asked.missing({answer.key for answer in existing})
        outcome = asked.ask(task, existing, log) if missing else asked.recall(existing)
        if log:
            log.finish(outcome.answers)
        keys = {(question.sample, question.turn): question.key for question in whole.by_key.values()}
        return [
            replace(answer, rate=baseline.rate, question=keys[answer.sample, asked.by_key[answer.question].turn])
            for answer in outcome.answers
        ]

    def compare(self, baseline: Baseline, answers: Sequence[Answer], pruned: Sequence[Answer]) -> EqualTokens:
        """Pruning against the baseline's `answers`, on the questions that both answered."""
        sizes = {sample.id for sample in self.samples}
        questions = sum(question.sample in sizes for question in self.evaluation.by_key.values())
        shared: dict[str, Any] = {"kept": baseline.kept, "pruned_kept": baseline.pruned_kept}
        shared |= {"baseline": baseline.kind, "rate": baseline.rate, "questions": questions}
        shared |= {"reason": ", ".join(reason for reason, _ in baseline.lost.most_common())}
        theirs = {answer.key: answer for answer in answers}
        ours = [answer for answer in pruned if answer.key in theirs]
        if not ours:
            return EqualTokens(**shared)
        (score,) = scores([theirs[answer.key] for answer in ours], self.evaluation.by_key)
        (change,) = differences(ours, answers, self.evaluation.by_key)
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
        sizes = [self._reductions[ref][1] for ref in sample.media if isinstance(ref, VideoRef)]
        return Counter(whole=sum(size.tokens for size in sizes), pruned=sum(self._pruned(size, rate) for size in sizes))

    def _pruned(self, size: Reduced, rate: float) -> int:
        return self.method.count(Grid(size.grids, 1, size.tokens // size.grids), rate)

    def _reduced(self, ref: VideoRef, kind: str, rate: float) -> Reduced:
        reduction, whole = self._reductions[ref]
        budget = self._pruned(whole, rate)
        return REDUCTIONS[kind](reduction, budget) if budget < whole.tokens else whole


def _is_video(part: Any) -> bool:
    return isinstance(part, VideoRef)
