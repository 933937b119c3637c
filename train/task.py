"""Batch + rates -> loss. The one visible line where pruning happens, and the one root that every engine wraps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from data.types import IGNORE, Batch
from evs import DecoderInputs, keep_mask, prune
from evs.adapters import Adapter
from evs.methods import Method
from train.head import fuse_loss


class StepOutput(NamedTuple):
    """A tuple, because ZeRO 3 looks for the tensors in what a module returns to hook its backward pass."""

    loss_sum: Tensor  # scalar float32, summed over the labelled tokens
    correct: Tensor  # scalar float32, labelled tokens to which the model gives the largest probability
    targets: int  # labelled tokens of the batch, the same at every rate
    tokens: int  # before pruning
    kept: int  # after pruning
    logits_TV: Tensor | None  # at the labelled tokens, in evaluation only


class UptrainTask(nn.Module):
    """A Hugging Face model trained on what a pruning server would let it see."""

    def __init__(self, model: nn.Module, adapter: Adapter, method: Method) -> None:
        super().__init__()
        self.model = model
        self.adapter = adapter
        self.method = method
        self.fused_loss = fuse_loss(adapter.model.lm_head)

    def forward(self, batch: Batch, rate: float | Sequence[float]) -> StepOutput:
        """`rate`: one for all videos of the batch, or one a video."""
        grids = self.adapter.grids(batch)
        rates_V = [rate] * len(grids) if isinstance(rate, float | int) else rate
        laid = self.adapter.lay(batch, pruned=any(rates_V or [rate]))
        full, features = self.adapter.see(batch, laid)
        x = prune(full, keep_mask(full, features, grids, rates_V, self.method))
        hidden_TD, labels_T = labelled(self.adapter.read(x), x)
        loss_sum, correct, logits_TV = self.head(hidden_TD, labels_T)
        return StepOutput(loss_sum, correct, len(labels_T), len(full.segment_N), len(x.segment_N), logits_TV)

    def head(self, hidden_TD: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(summed loss, correct tokens, logits in evaluation only).

        Through the module, never its weight: ZeRO 3 gathers parameters around module calls.
        """
        head: Any = self.adapter.model.lm_head
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


def count_targets(batches: Sequence[Batch]) -> int:
    """Labelled tokens of one rank's step, known before anything is computed."""
    return sum(int(torch.count_nonzero(batch.labels_N != IGNORE)) for batch in batches)
