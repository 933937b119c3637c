"""Held-out loss and accuracy at a fixed grid of rates.

Accuracy needs no generation: an answer is right when every one of its tokens is the arg max given the right ones
before it, which is when greedy decoding would write it. Where the question offers lettered options, the answer is
the likeliest of the offered letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from data.loader import Step
from data.types import IGNORE, Batch
from train.task import StepOutput


@dataclass(frozen=True)
class Score:
    """One rate's line of the curve."""

    rate: float
    accuracy: float
    loss: float  # per labelled token
    kept: float  # fraction of all tokens, text included, that the language model read
    answers: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@torch.no_grad()
def evaluate(
    engine: Accelerator, task: nn.Module, steps: Iterable[Step], rates: Sequence[float], total: int | None = None
) -> list[Score]:
    """One Score a rate, over all ranks; leaves `task` in evaluation mode.

    `steps` hold this rank's batches, equally many on every rank.
    """
    task.eval()
    sums = torch.zeros(len(rates), 6, dtype=torch.float64, device=engine.device)
    bar = tqdm(steps, total=total, desc="evaluate", disable=not engine.is_main_process, leave=False)
    for step in bar:
        for batch in step.batches:
            for i, rate in enumerate(rates):
                out = task(batch, float(rate))
                sums[i] += _sums(out, batch)
    sums = engine.reduce(sums, reduction="sum")
    return [_score(float(rate), row) for rate, row in zip(rates, sums.tolist())]


def _sums(out: StepOutput, batch: Batch) -> Tensor:
    """correct, answers, loss, targets, kept, tokens of one batch."""
    assert out.logits_TV is not None
    correct = answers_correct(out.logits_TV, batch)
    values = [correct.sum(), len(correct), out.loss_sum, out.targets, out.kept, out.tokens]
    return torch.stack([torch.as_tensor(v, dtype=torch.float64, device=out.loss_sum.device) for v in values])


def _score(rate: float, sums: list[float]) -> Score:
    correct, answers, loss, targets, kept, tokens = sums
    if not answers:
        raise ValueError("nothing to evaluate: no sample of the evaluation data has a usable answer")
    return Score(rate, correct / answers, loss / targets, kept / tokens, int(answers))


def answers_correct(logits_TV: Tensor, batch: Batch) -> Tensor:
    """[A] bool, one an assistant turn."""
    places = (batch.labels_N != IGNORE).nonzero().squeeze(1)
    labels_T = batch.labels_N[places].to(logits_TV.device)
    if not len(places):
        return torch.zeros(0, dtype=torch.bool, device=logits_TV.device)
    starts = torch.cat(
        [torch.ones(1, dtype=torch.bool), places.diff() > 1]
    )  # turns never touch: a header stands between
    answer_T = (starts.cumsum(0) - 1).to(logits_TV.device)
    wrong = torch.zeros(int(starts.sum()), device=logits_TV.device).index_add(
        0, answer_T, (logits_TV.argmax(-1) != labels_T).float()
    )
    correct = wrong == 0
    for answer, (first, choices) in enumerate(zip(starts.nonzero().squeeze(1).tolist(), batch.choices)):
        if choices:
            offered = torch.tensor(choices, device=logits_TV.device)
            correct[answer] = offered[logits_TV[first, offered].argmax()] == labels_T[first]
    return correct
