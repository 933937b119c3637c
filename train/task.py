"""Batch + rates -> loss. The one line where a batch is pruned, and the one root that every engine wraps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from data.types import IGNORE, Batch
from evs import DecoderInputs
from evs.adapters import Adapter, towers_of
from evs.generate import Decoding, continue_at
from evs.methods import Method
from evs.survivors import Look
from train.head import fuse_loss


class StepOutput(NamedTuple):
    """A tuple, because ZeRO 3 looks for the tensors in what a module returns to hook its backward pass."""

    loss_sum: Tensor  # scalar float32, summed over the labelled tokens
    correct: Tensor  # scalar float32, labelled tokens to which the model gives the largest probability
    targets: int  # labelled tokens of the batch, the same at every rate
    tokens: int  # before pruning
    kept: int  # after pruning
    logits_TV: Tensor | None  # at the labelled tokens, in evaluation only


@dataclass(frozen=True)
class Asked:
    """What an evaluation asks of a batch."""

    rates: tuple[float, ...]
    written: tuple[int, ...] = ()  # the batch's answers that are to be written, not scored
    decoding: Decoding = field(default_factory=Decoding)
    together: Callable[[bool], bool] | None = None  # evs.generate.continue_at's `going`, where ranks share parameters


class View(NamedTuple):
    """A batch read at one rate."""

    logits_TV: Tensor  # at the labelled tokens
    kept_S: Tensor  # tokens of each sample after pruning
    written: list[tuple[int, ...]]


class UptrainTask(nn.Module):
    """A Hugging Face model trained on what a pruning server would let it see."""

    def __init__(self, model: nn.Module, adapter: Adapter, method: Method) -> None:
        super().__init__()
        self.model = model
        self.adapter = adapter
        self.method = method
        self.fused_loss = fuse_loss(towers_of(adapter.model).head)

    def forward(self, batch: Batch, rate: float | Sequence[float] | Asked) -> StepOutput | list[View]:
        """`rate`: one for all videos of the batch, or one a video; or what an evaluation asks, in views."""
        if isinstance(rate, Asked):
            return self.views(batch, rate)
        rates_V = [rate] * len(self.adapter.grids(batch)) if isinstance(rate, float | int) else rate
        out = Look(self.adapter, batch, self.method).at(rates_V, pruned=any(rates_V or [rate]))
        hidden_TD, labels_T = labelled(self.adapter.read(out.x), out.x)
        loss_sum, correct, logits_TV = self.head(hidden_TD, labels_T)
        return StepOutput(loss_sum, correct, len(labels_T), len(out.keep_N), len(out.x.segment_N), logits_TV)

    def views(self, batch: Batch, asked: Asked) -> list[View]:
        """The batch at each of the rates, from one look at its media."""
        videos, look = len(self.adapter.grids(batch)), Look(self.adapter, batch, self.method)
        views = []
        for rate in asked.rates:
            x = look.at([rate] * videos, pruned=rate > 0).x
            hidden_TD, _ = labelled(self.adapter.read(x), x)
            views.append(
                View(towers_of(self.adapter.model).head(hidden_TD), x.segment_N.bincount(), self.written(x, asked))
            )
        return views

    def written(self, x: DecoderInputs, asked: Asked) -> list[tuple[int, ...]]:
        """The answers that are asked to be written, as tokens."""
        begins = answer_begins(x.labels_N)
        ends = [begins[answer] for answer in asked.written]
        if asked.together is not None:  # ranks call the same modules equally often, with or without a question
            return continue_at(self.adapter.model, x, ends or [1], asked.decoding, going=asked.together)[: len(ends)]
        return continue_at(self.adapter.model, x, ends, asked.decoding) if ends else []

    def head(self, hidden_TD: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(summed loss, correct tokens, logits in evaluation only).

        Through the module, never its weight: ZeRO 3 gathers parameters around module calls.
        """
        head: Any = towers_of(self.adapter.model).head
        if self.training and self.fused_loss:
            return *head(hidden_TD, labels_T), None
        logits_TV = head(hidden_TD)
        loss_sum = cross_entropy(logits_TV.float(), labels_T, reduction="sum")
        correct = (logits_TV.detach().argmax(-1) == labels_T).sum().float()
        return loss_sum, correct, None if self.training else logits_TV


def labelled(hidden_ND: Tensor, x: DecoderInputs) -> tuple[Tensor, Tensor]:
    """([T, D] states that predict a labelled token, [T] those labels): each token is read off the one before it."""
    target = (x.labels_N != IGNORE).nonzero().squeeze(1)
    return hidden_ND[target - 1], x.labels_N[target]


def answer_begins(labels_N: Tensor) -> list[int]:
    """Place of every answer's first token; answers never touch, since a header stands between."""
    target_N = labels_N != IGNORE
    first_N = target_N & ~torch.cat([target_N.new_zeros(1), target_N[:-1]])
    return first_N.nonzero().squeeze(1).tolist()


def count_targets(batches: Sequence[Batch]) -> int:
    """Labelled tokens of one rank's step, known before anything is computed."""
    return sum(int(torch.count_nonzero(batch.labels_N != IGNORE)) for batch in batches)
