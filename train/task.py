"""The training task: a batch and its pruning rates in, losses out. It is the module that every engine wraps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu

from data.types import IGNORE, Batch
from evs import DecoderInputs
from evs.families import Adapter, towers_of
from evs.generate import continue_at
from evs.losses.fused_head import fuse_loss
from evs.losses.objective import Losses, Objective, mean_objective
from evs.methods import Method
from evs.pipeline import EncodedBatch, PrunedInputs
from evs.sequence_parallel import SequenceGroup
from evs.views import decode_labelled
from train.config import DistillConfig
from train.losses.objective import build_objective, from_logits
from train.optim import trained_towers
from train.views import Rate


class StepOutput(NamedTuple):
    """A NamedTuple, because ZeRO 3 finds the tensors of a module's output in tuples to hook its backward pass.

    Ranks that share a batch return equal values; the gradient of `loss_sum` is the one of a rank's own share.
    """

    loss_sum: Tensor  # scalar float32, the objective summed over the labelled tokens
    losses_K: Tensor  # float32, each view's summed cross-entropy
    correct_K: Tensor  # float32, labelled tokens to which the model gives the largest probability, by view
    targets: int  # labelled tokens of the batch, the same in every view
    tokens: int  # before pruning, the same in every view
    kept: tuple[int, ...]  # after pruning, by view
    divergences: dict[str, Tensor]  # float32, summed over the labelled tokens, mean over pairs, by kind of teacher


@dataclass(frozen=True)
class TrainRequest:
    """The rates at which a step trains on a batch, one per view, lowest first."""

    rates: tuple[Rate, ...]
    method: Method | None = None  # the pruning method; None uses the task's


@dataclass(frozen=True)
class EvalRequest:
    """The rates at which a batch is evaluated, and which of its answers are generated."""

    rates: tuple[float, ...]
    written: tuple[int, ...] = ()  # indices of the batch's answers that are generated instead of scored
    new_tokens: int = 128  # the greatest length of a generated answer
    synced_gpus: bool = False  # True where ranks share parameters and must call the same modules equally often


class EvalOutput(NamedTuple):
    """The outputs of a batch at one pruning rate."""

    logits_TV: Tensor  # at the labelled tokens
    kept_S: Tensor  # tokens of each sample after pruning
    written: list[tuple[int, ...]]
    areas_S: list[list[float]]  # evs.score_area of each sample's videos, the same at every rate


class UptrainTask(nn.Module):
    """A Hugging Face model trained on the tokens that a pruning server keeps."""

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        method: Method,
        distill: DistillConfig | None = None,
        group: SequenceGroup | None = None,
        *,
        offload: bool = False,
    ) -> None:
        super().__init__()
        self.offload = offload  # keep the inputs of recomputed layers in host memory
        self.group = group  # ranks that share every training batch; evaluations share none
        self.model = model
        self.adapter = adapter
        self.method = method
        self.distill = distill or DistillConfig()
        self.fused_loss = fuse_loss(towers_of(adapter.model).head)
        # If LoRA changes the vision tower, the base model encodes videos differently.
        self.base_encodes = trained_towers(model, adapter.spec) != {"language"}

    def forward(self, batch: Batch, request: TrainRequest | EvalRequest) -> StepOutput | list[EvalOutput]:
        """`train_step` or `evaluate`. Engines wrap this method only."""
        if isinstance(request, EvalRequest):
            return self.evaluate(batch, request)
        return self.train_step(batch, request)

    def train_step(self, batch: Batch, request: TrainRequest) -> StepOutput:
        """The losses of the batch in each view; its media are encoded once, unless tokens are dropped earlier."""
        rates = request.rates
        objective = build_objective(self.distill, rates) if self.training else mean_objective(len(rates))
        encoded = EncodedBatch(self.adapter, batch, request.method or self.method, self.group)
        pruned = [self._prune(encoded, rate) for rate in rates]
        states_RTD = torch.stack(self._decode(encoded, rates[0], [out.x for out in pruned], objective))
        labels_T = pruned[0].x.labels_N[pruned[0].x.labels_N != IGNORE]
        if self.group is None:
            losses = self.head(states_RTD, labels_T, objective)
        else:
            own = self.group.share(len(labels_T))
            losses = self.group.total(self.head(states_RTD[:, own], labels_T[own], objective))
        return StepOutput(
            losses.total,
            losses.entropy_R[-len(rates) :],
            losses.correct_R[-len(rates) :],
            len(labels_T),
            len(pruned[0].keep_N),
            tuple(len(out.x.segment_N) for out in pruned),
            by_source(losses.divergence_L, objective),
        )

    def _prune(self, encoded: EncodedBatch, rate: Rate) -> PrunedInputs:
        videos = len(self.adapter.grids(encoded.batch))
        rates_V = [rate] * videos if isinstance(rate, float | int) else rate
        return encoded.prune(rates_V, pruned=any(rates_V or [rate]))

    def _decode(
        self, encoded: EncodedBatch, lowest: Rate, views: list[DecoderInputs], objective: Objective
    ) -> list[Tensor]:
        """For every row of the objective, the [T, D] hidden states that predict the labelled tokens."""
        no_grad: list[Tensor] = []
        # Layers that are recomputed save nothing but their inputs.
        pinned = torch.cuda.is_available()
        with save_on_cpu(pin_memory=pinned) if self.offload and self.training else nullcontext():
            trained = decode_labelled(self.adapter, views[objective.no_grad_rows - objective.base :], self.group)
        with torch.no_grad():
            if objective.base:
                with self._without_lora():
                    x = self._prune(replace(encoded), lowest).x if self.base_encodes else views[0]
                    no_grad = decode_labelled(self.adapter, [x], self.group)
            elif objective.no_grad_rows:
                no_grad = decode_labelled(self.adapter, views[:1], self.group)
        return [*no_grad, *trained]

    def _without_lora(self) -> AbstractContextManager[None]:
        assert isinstance(self.model, PeftModel)
        return self.model.disable_adapter()

    def evaluate(self, batch: Batch, request: EvalRequest) -> list[EvalOutput]:
        """The batch at each of the rates; its media are encoded once."""
        videos, encoded = len(self.adapter.grids(batch)), EncodedBatch(self.adapter, batch, self.method)
        outputs, head, areas_S = [], towers_of(self.adapter.model).head, encoded.score_areas()
        for rate in request.rates:
            pruned = encoded.prune([rate] * videos, pruned=rate > 0)
            (hidden_TD,) = decode_labelled(self.adapter, [pruned.x])
            kept_S = pruned.x.segment_N.bincount()
            outputs.append(EvalOutput(head(hidden_TD), kept_S, self.written(batch, pruned, request), areas_S))
        return outputs

    def written(self, batch: Batch, pruned: PrunedInputs, request: EvalRequest) -> list[tuple[int, ...]]:
        """The generated tokens of every requested answer."""
        begins = answer_begins(pruned.x.labels_N)
        ends = [begins[answer] for answer in request.written]
        if not ends and not request.synced_gpus:
            return []
        ids_N = batch.input_ids_N.to(pruned.keep_N.device)[pruned.keep_N]
        options = {"max_new_tokens": request.new_tokens, "synced_gpus": request.synced_gpus}
        # A rank without a question generates in step with those that have one.
        return continue_at(self.adapter.model, pruned.x, ids_N, ends or [1], **options)[: len(ends)]

    def head(self, hidden_RTD: Tensor, labels_T: Tensor, objective: Objective) -> Losses:
        """The losses of the rows (R) of hidden states at the labelled tokens.

        Calls the head's module and never reads its weight: ZeRO 3 gathers parameters around module calls. All rows
        share one call, except the base model's if LoRA has changed the head.
        """
        head: Any = towers_of(self.adapter.model).head
        if self.training and self.fused_loss:
            return head(hidden_RTD, labels_T, objective)
        logits_RTV = head(hidden_RTD[objective.base :])
        if objective.base:
            with torch.no_grad(), self._without_lora():
                base_RTV = head(hidden_RTD[:1])
            logits_RTV = torch.cat([base_RTV, logits_RTV])
        return from_logits(logits_RTV, labels_T, objective)


def by_source(divergence_L: Tensor, objective: Objective) -> dict[str, Tensor]:
    """The mean divergence of each teacher's pairs."""
    sources = [pair.source for pair in objective.pairs]
    parts = {name: [part for part, source in zip(divergence_L, sources) if source == name] for name in sources}
    return {name: torch.stack(parts[name]).mean() for name in sorted(parts)}


def answer_begins(labels_N: Tensor) -> list[int]:
    """Index of every answer's first token. Answers are never adjacent: a turn header separates them."""
    target_N = labels_N != IGNORE
    first_N = target_N & ~torch.cat([target_N.new_zeros(1), target_N[:-1]])
    return first_N.nonzero().squeeze(1).tolist()


def count_targets(batches: Sequence[Batch]) -> int:
    """Number of labelled tokens in one rank's micro-batches of a step."""
    return sum(int(torch.count_nonzero(batch.labels_N != IGNORE)) for batch in batches)
