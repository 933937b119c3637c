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
from evs.views import read_views
from train.losses.head import fuse_loss
from train.views import Rate, Views


class StepOutput(NamedTuple):
    """A tuple, because ZeRO 3 looks for the tensors in what a module returns to hook its backward pass."""

    loss_sum: Tensor  # scalar float32, summed over the labelled tokens, mean over the views
    losses_K: Tensor  # float32, each view's sum
    correct_K: Tensor  # float32, labelled tokens to which the model gives the largest probability, by view
    targets: int  # labelled tokens of the batch, the same in every view
    tokens: int  # before pruning, the same in every view
    kept: tuple[int, ...]  # after pruning, by view
    logits_KTV: Tensor | None  # at the labelled tokens, in evaluation only


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

    def forward(self, batch: Batch, asked: Rate | Views | Asked) -> StepOutput | list[View]:
        """A step's losses in each of the views (a rate alone is one view), or what an evaluation asks."""
        if isinstance(asked, Asked):
            return self.views(batch, asked)
        look, videos = Look(self.adapter, batch, self.method), len(self.adapter.grids(batch))
        seen = []
        for rate in asked.rates if isinstance(asked, Views) else (asked,):
            rates_V = [rate] * videos if isinstance(rate, float | int) else rate
            seen.append(look.at(rates_V, pruned=any(rates_V or [rate])))
        hidden = read_views(self.adapter, [out.x for out in seen])
        states, labels = zip(*(labelled(hidden_ND, out.x) for hidden_ND, out in zip(hidden, seen)))
        losses = self.head(torch.stack(states), labels[0])
        kept = tuple(len(out.x.segment_N) for out in seen)
        return StepOutput(*losses[:3], len(labels[0]), len(seen[0].keep_N), kept, losses[3])

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

    def head(self, hidden_KTD: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(loss, summed loss and correct tokens by view, logits in evaluation only).

        Through the module, never its weight: ZeRO 3 gathers parameters around module calls. Once for all views.
        """
        head: Any = towers_of(self.adapter.model).head
        if self.training and self.fused_loss:
            return *head(hidden_KTD, labels_T), None
        logits_KTV = head(hidden_KTD)
        losses_K = torch.stack([cross_entropy(each.float(), labels_T, reduction="sum") for each in logits_KTV])
        correct_K = (logits_KTV.detach().argmax(-1) == labels_T).sum(1).float()
        return losses_K.mean(), losses_K.detach(), correct_K, None if self.training else logits_KTV


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
