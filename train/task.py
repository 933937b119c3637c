"""Batch + rates -> loss. The one line where a batch is pruned, and the one root that every engine wraps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn

from data.types import IGNORE, Batch
from evs import DecoderInputs
from evs.families import Adapter, towers_of
from evs.generate import Decoding, continue_at
from evs.methods import Method
from evs.pipeline import Look, Survivors
from evs.views import read_views
from train.config import DistillConfig
from train.losses.head import fuse_loss
from train.losses.objective import Losses, Objective, from_logits, mean_over, objective
from train.optim import trained_towers
from train.views import Rate, Views


class StepOutput(NamedTuple):
    """A tuple, because ZeRO 3 looks for the tensors in what a module returns to hook its backward pass."""

    loss_sum: Tensor  # scalar float32, the objective summed over the labelled tokens
    losses_K: Tensor  # float32, each view's summed cross-entropy
    correct_K: Tensor  # float32, labelled tokens to which the model gives the largest probability, by view
    targets: int  # labelled tokens of the batch, the same in every view
    tokens: int  # before pruning, the same in every view
    kept: tuple[int, ...]  # after pruning, by view
    divergences: dict[str, Tensor]  # float32, summed over the labelled tokens, mean over lessons, by who teaches
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

    def __init__(
        self, model: nn.Module, adapter: Adapter, method: Method, distill: DistillConfig | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.adapter = adapter
        self.method = method
        self.distill = distill or DistillConfig()
        self.fused_loss = fuse_loss(towers_of(adapter.model).head)
        self.base_sees = trained_towers(model) != {"language"}  # without its LoRA the model sees videos in another way

    def forward(self, batch: Batch, asked: Rate | Views | Asked) -> StepOutput | list[View]:
        """A step's losses in each of the views (a rate alone is one view), or what an evaluation asks."""
        if isinstance(asked, Asked):
            return self.views(batch, asked)
        asked = asked if isinstance(asked, Views) else Views((asked,))
        rates = asked.rates
        about = objective(self.distill, rates) if self.training else mean_over(len(rates))
        look = Look(self.adapter, batch, asked.method or self.method)
        seen = [self._at(look, rate) for rate in rates]
        read = self._read(look, rates[0], [out.x for out in seen], about)
        states, (labels_T, *_) = zip(*(labelled(hidden_ND, x) for hidden_ND, x in read))
        losses, logits_RTV = self.head(torch.stack(states), labels_T, about)
        return StepOutput(
            losses.total,
            losses.entropy_R[-len(rates) :],
            losses.correct_R[-len(rates) :],
            len(labels_T),
            len(seen[0].keep_N),
            tuple(len(out.x.segment_N) for out in seen),
            by_source(losses.divergence_L, about),
            None if self.training else logits_RTV,
        )

    def _at(self, look: Look, rate: Rate) -> Survivors:
        videos = len(self.adapter.grids(look.batch))
        rates_V = [rate] * videos if isinstance(rate, float | int) else rate
        return look.at(rates_V, pruned=any(rates_V or [rate]))

    def _read(
        self, look: Look, lowest: Rate, views: list[DecoderInputs], about: Objective
    ) -> list[tuple[Tensor, DecoderInputs]]:
        """Every row of the objective: its hidden states, and what was read."""
        trained, given = views[about.given - about.base :], []
        read = read_views(self.adapter, trained)
        with torch.no_grad():
            if about.base:
                with self._without_lora():
                    x = self._at(replace(look), lowest).x if self.base_sees else views[0]
                    given = [(self.adapter.read(x), x)]
            elif about.given:
                given = [(self.adapter.read(views[0]), views[0])]
        return [*given, *zip(read, trained)]

    def _without_lora(self) -> AbstractContextManager[None]:
        assert isinstance(self.model, PeftModel)
        return self.model.disable_adapter()

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

    def head(self, hidden_RTD: Tensor, labels_T: Tensor, about: Objective) -> tuple[Losses, Tensor | None]:
        """(losses, logits where they stand whole).

        Through the module, never its weight: ZeRO 3 gathers parameters around module calls. Once for all rows, but for
        the base's where LoRA has changed the head.
        """
        head: Any = towers_of(self.adapter.model).head
        if self.training and self.fused_loss:
            return head(hidden_RTD, labels_T, about), None
        logits_RTV = head(hidden_RTD[about.base :])
        if about.base:
            with torch.no_grad(), self._without_lora():
                given = head(hidden_RTD[:1])
            logits_RTV = torch.cat([given, logits_RTV])
        return from_logits(logits_RTV, labels_T, about), logits_RTV


def labelled(hidden_ND: Tensor, x: DecoderInputs) -> tuple[Tensor, Tensor]:
    """([T, D] states that predict a labelled token, [T] those labels): each token is read off the one before it."""
    target = (x.labels_N != IGNORE).nonzero().squeeze(1)
    return hidden_ND[target - 1], x.labels_N[target]


def by_source(divergence_L: Tensor, about: Objective) -> dict[str, Tensor]:
    """The mean over the lessons of each teacher."""
    sources = [lesson.source for lesson in about.lessons]
    parts = {name: [part for part, source in zip(divergence_L, sources) if source == name] for name in sources}
    return {name: torch.stack(parts[name]).mean() for name in sorted(parts)}


def answer_begins(labels_N: Tensor) -> list[int]:
    """Place of every answer's first token; answers never touch, since a header stands between."""
    target_N = labels_N != IGNORE
    first_N = target_N & ~torch.cat([target_N.new_zeros(1), target_N[:-1]])
    return first_N.nonzero().squeeze(1).tolist()


def count_targets(batches: Sequence[Batch]) -> int:
    """Labelled tokens of one rank's step, known before anything is computed."""
    return sum(int(torch.count_nonzero(batch.labels_N != IGNORE)) for batch in batches)
