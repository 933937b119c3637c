"""Evaluates a model on held-out questions at several pruning rates; each video is encoded once.

If a question offers lettered options, the answer is the most likely of the offered letters ("choice"). If the row names
a metric (data.answer_metrics), the answer is generated and graded by it. Any other answer is correct if greedy decoding
would generate it, that is if each token is the arg max given the correct ones before it ("greedy"); this needs no
generation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from accelerate import Accelerator
from torch import nn

from data.answer_metrics import METRICS
from data.batching.plans import shards
from data.encoding.encoder import Encoder
from data.loader import Quarantined, shard_loader
from data.progress import progress_bar
from data.types import Batch, Sample
from train.checkpoint.storage import shares_parameters
from train.collectives import collected
from train.config import DataConfig, EvalConfig
from train.evaluation.answers import Answer, Answers
from train.evaluation.grades import grades
from train.evaluation.questions import Question, questions
from train.evaluation.scores import Score, areas_of, scores
from train.task import EvalOutput, EvalRequest, answer_begins


@dataclass(frozen=True)
class Outcome:
    """All ranks' answers in the order of the data, and the quarantined samples."""

    answers: list[Answer]
    lost: list[Quarantined]


@dataclass(frozen=True)
class Summary:
    """The scores of the current weights, the same on every rank."""

    scores: list[Score]  # one per rate, lowest first
    areas: list[float]  # evs.score_area of every video
    quarantined: list[Quarantined]


class Evaluation:
    """Evaluates a task on a fixed set of samples, which the ranks share."""

    def __init__(
        self,
        engine: Accelerator,
        encoder: Encoder,
        samples: Sequence[Sample],
        rates: Sequence[float],
        *,
        batch_size: int = 1,
        workers: int = 0,
        new_tokens: int = 64,
    ) -> None:
        self.engine, self.encoder, self.rates = engine, encoder, tuple(map(float, rates))
        self.batch_size, self.workers, self.new_tokens = batch_size, workers, new_tokens
        self.samples, self.by_sample = questions(samples)
        self.by_key = {question.key: question for question in chain.from_iterable(self.by_sample.values())}

    def with_samples(self, samples: Sequence[Sample], rates: Sequence[float]) -> Evaluation:
        """An evaluation of the same kind on other samples and rates."""
        options = {"batch_size": self.batch_size, "workers": self.workers, "new_tokens": self.new_tokens}
        return Evaluation(self.engine, self.encoder, samples, rates, **options)

    def summarize(self, task: nn.Module) -> Summary:
        """Answer all questions and score the answers. Leaves the task in evaluation mode. Every rank must call it."""
        outcome = self.ask(task)
        by_rate, areas = scores(outcome.answers, self.by_key), areas_of(outcome.answers, self.by_key)
        return Summary(by_rate, areas, outcome.lost)

    def ask(self, task: nn.Module, existing: Sequence[Answer] = (), log: Answers | None = None) -> Outcome:
        """Answer all questions that have no `existing` answer, and append the answers to `log` batch by batch.

        Every rank must call it.
        """
        task.eval()
        local: list[Answer] = []
        lost: list[Quarantined] = []
        for answers, quarantined in self._batches(task, {answer.key for answer in existing}):
            local += answers
            lost += quarantined
            if log is not None and answers:
                log.append(answers)
        return replace(self.recall([*existing, *collected(local)]), lost=collected(lost))

    def recall(self, existing: Sequence[Answer]) -> Outcome:
        """The existing answers to this evaluation's questions, without asking any."""
        answers = {answer.key: answer for answer in existing}
        keys = [(question, rate) for question in self.by_key for rate in self.rates]
        return Outcome([answers[key] for key in keys if key in answers], [])

    def missing(self, existing: set[tuple[str, float]]) -> dict[tuple[float, ...], list[int]]:
        """Indices of samples, grouped by the rates at which one of their questions has no answer yet."""
        groups: dict[tuple[float, ...], list[int]] = defaultdict(list)
        for index, sample_questions in enumerate(self.by_sample.values()):
            rates = tuple(
                r for r in self.rates if any((question.key, r) not in existing for question in sample_questions)
            )
            if rates:
                groups[rates].append(index)
        return groups

    @torch.no_grad()
    def _batches(
        self, task: nn.Module, existing: set[tuple[str, float]]
    ) -> Iterator[tuple[list[Answer], tuple[Quarantined, ...]]]:
        """(answers, quarantined samples) of each of this rank's batches. All ranks have the same number of batches."""
        rank, world = self.engine.process_index, self.engine.num_processes
        plan = [
            (rates, [indices[i] for i in shard])
            for rates, indices in self.missing(existing).items()
            for shard in shards(len(indices), self.batch_size, world, rank)
        ]
        steps = shard_loader(self.samples, self.encoder, [indices for _, indices in plan], workers=self.workers)
        hidden = not self.engine.is_main_process
        bar = progress_bar(steps, total=len(plan), desc="evaluate", unit="batch", disable=hidden, leave=False)
        for step, (rates, _) in zip(bar, plan):
            for batch in step.batches:
                yield self._answers(task, batch, rates), step.quarantined

    def _answers(self, task: nn.Module, batch: Batch, rates: tuple[float, ...]) -> list[Answer]:
        batch_questions = [question for id in batch.ids for question in self.by_sample[id]]
        free = tuple(
            i
            for i, (question, choices) in enumerate(zip(batch_questions, batch.choices))
            if question.metric and not choices
        )
        outputs = task(batch, EvalRequest(rates, free, self.new_tokens, self._synced()))
        return [
            answer
            for rate, output in zip(rates, outputs)
            for answer in self._graded(batch, batch_questions, dict(zip(free, output.written)), rate, output)
        ]

    def _graded(
        self,
        batch: Batch,
        batch_questions: list[Question],
        written: dict[int, tuple[int, ...]],
        rate: float,
        output: EvalOutput,
    ) -> Iterator[Answer]:
        """The batch's answers at one rate. `written` holds the generated tokens by the index of the answer."""
        tokens_S, segments = batch.segment_N.bincount().tolist(), batch.segment_N[answer_begins(batch.labels_N)]
        kept_S = output.kept_S.tolist()
        graded = grades(output.logits_TV, batch)
        for i, (question, grade, segment) in enumerate(zip(batch_questions, graded, segments.tolist())):
            metric, score, text = grade.metric, grade.score, self._text(written.get(i, grade.tokens))
            if i in written:
                metric = str(question.metric)
                score = METRICS[metric](text, question.accepted)
            counts = {"targets": grade.targets, "kept": kept_S[segment], "tokens": tokens_S[segment]}
            asked = (question.key, rate, question.sample)
            yield Answer(*asked, score, metric, text, grade.loss, **counts, areas=output.areas_S[segment])

    def _text(self, tokens: Sequence[int]) -> str:
        return self.encoder.processor.tokenizer.decode(list(tokens), skip_special_tokens=True).strip()

    def _synced(self) -> bool:
        """True under ZeRO 3 if any question is generated: no rank may stop before the others."""
        return shares_parameters(self.engine) and any(question.metric for question in self.by_key.values())


def build_questions(
    engine: Accelerator, encoder: Encoder, samples: Sequence[Sample], *, data: DataConfig, config: EvalConfig
) -> Evaluation:
    """An evaluation on the first `config.limit` samples, or on all without a limit."""
    limited = samples if config.limit is None else samples[: config.limit]
    options = {"batch_size": config.batch_size, "workers": data.workers, "new_tokens": config.new_tokens}
    return Evaluation(engine, encoder, limited, config.rates, **options)
