"""A model's answers to held-out questions at a grid of rates, from one look at each video.

Where a question offers lettered options, the answer is the likeliest of the offered letters ("choice"). A free answer
is written and graded by the metric that its row names (data.answer_metrics). An answer without a metric is right when
each of its tokens is the arg max given the right ones before it, which is when greedy decoding would write it
("greedy"); that needs no generation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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
from evs.generate import Decoding
from train.checkpoint.storage import shares_parameters
from train.collectives import collected
from train.evaluation.answers import Answer, Answers
from train.evaluation.grades import grades
from train.evaluation.questions import Question, questions
from train.evaluation.scores import Score, scores
from train.task import EvalOutput, EvalRequest, answer_begins


@dataclass(frozen=True)
class Outcome:
    """All ranks' answers, in the order of the data, and the samples that could not be asked."""

    answers: list[Answer]
    lost: list[Quarantined]


class Evaluation:
    """Samples that a task is asked about; the same samples however often, and however many ranks share them."""

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
        self.batch_size, self.workers = batch_size, workers
        self.decoding = Decoding(max_new_tokens=new_tokens)
        self.samples, self.by_sample = questions(samples)
        self.by_key = {question.key: question for question in chain.from_iterable(self.by_sample.values())}

    def scores(self, task: nn.Module) -> tuple[list[Score], list[Quarantined]]:
        """One Score a rate of the task as it now is, and what could not be asked, on every rank; leaves it in
        evaluation mode."""
        outcome = self.ask(task)
        return scores(outcome.answers, self.by_key), outcome.lost

    def ask(self, task: nn.Module, there: Sequence[Answer] = (), log: Answers | None = None) -> Outcome:
        """Ask what is not `there` yet, and append it to `log` batch by batch. Every rank must call it."""
        task.eval()
        mine: list[Answer] = []
        lost: list[Quarantined] = []
        for answers, missed in self._batches(task, {answer.place for answer in there}):
            mine += answers
            lost += missed
            if log is not None and answers:
                log.append(answers)
        return replace(self.recall([*there, *collected(mine)]), lost=collected(lost))

    def recall(self, there: Sequence[Answer]) -> Outcome:
        """What was answered before, where it is all that is asked."""
        found = {answer.place: answer for answer in there}
        return Outcome([found[key, rate] for key in self.by_key for rate in self.rates if (key, rate) in found], [])

    def missing(self, there: set[tuple[str, float]]) -> dict[tuple[float, ...], list[int]]:
        """Places of samples by the rates at which one of their questions has no answer yet."""
        groups: dict[tuple[float, ...], list[int]] = defaultdict(list)
        for place, asked in enumerate(self.by_sample.values()):
            rates = tuple(r for r in self.rates if any((question.key, r) not in there for question in asked))
            if rates:
                groups[rates].append(place)
        return groups

    @torch.no_grad()
    def _batches(
        self, task: nn.Module, there: set[tuple[str, float]]
    ) -> Iterator[tuple[list[Answer], tuple[Quarantined, ...]]]:
        """What each of this rank's batches brings; batches of all ranks are equally many."""
        rank, world = self.engine.process_index, self.engine.num_processes
        plan = [
            (rates, [places[i] for i in shard])
            for rates, places in self.missing(there).items()
            for shard in shards(len(places), self.batch_size, world, rank)
        ]
        steps = shard_loader(self.samples, self.encoder, [places for _, places in plan], workers=self.workers)
        hidden = not self.engine.is_main_process
        bar = progress_bar(steps, total=len(plan), desc="evaluate", unit="batch", disable=hidden, leave=False)
        for step, (rates, _) in zip(bar, plan):
            for batch in step.batches:
                yield self._answers(task, batch, rates), step.quarantined

    def _answers(self, task: nn.Module, batch: Batch, rates: tuple[float, ...]) -> list[Answer]:
        asked = [question for id in batch.ids for question in self.by_sample[id]]
        free = tuple(
            i for i, (question, choices) in enumerate(zip(asked, batch.choices)) if question.metric and not choices
        )
        views = task(batch, EvalRequest(rates, free, self.decoding, self._together()))
        return [answer for rate, view in zip(rates, views) for answer in self._read(batch, asked, free, rate, view)]

    def _read(
        self, batch: Batch, asked: list[Question], free: tuple[int, ...], rate: float, view: EvalOutput
    ) -> Iterator[Answer]:
        """The batch's answers at one rate."""
        written = dict(zip(free, view.written))
        tokens_S, segments = batch.segment_N.bincount().tolist(), batch.segment_N[answer_begins(batch.labels_N)]
        kept_S = view.kept_S.tolist()
        graded = grades(view.logits_TV, batch)
        for i, (question, grade, segment) in enumerate(zip(asked, graded, segments.tolist())):
            metric, score, text = grade.metric, grade.score, self._text(written.get(i, grade.tokens))
            if i in written:
                metric = str(question.metric)
                score = METRICS[metric](text, question.accepted)
            counts = {"targets": grade.targets, "kept": kept_S[segment], "tokens": tokens_S[segment]}
            yield Answer(question.key, rate, question.sample, score, metric, text, grade.loss, **counts)

    def _text(self, tokens: Sequence[int]) -> str:
        return self.encoder.processor.tokenizer.decode(list(tokens), skip_special_tokens=True).strip()

    def _together(self) -> Callable[[bool], bool] | None:
        """Where a layer's parameters come from all ranks, none may stop before the others."""
        if not (shares_parameters(self.engine) and any(question.metric for question in self.by_key.values())):
            return None
        device = self.engine.device
        return lambda alive: bool(self.engine.reduce(torch.tensor(float(alive), device=device), reduction="sum") > 0)
