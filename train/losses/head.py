"""The head and its loss as one call of one module, in chunks: the labelled tokens' logits never stand together.

Gradients are made where the logits are, so backward neither keeps nor recomputes them. Liger's kernel does so in chunks
that are the smaller the larger the vocabulary, each adding to the weight's whole gradient: for a video's few labelled
tokens it is many times slower (docs/performance.md). One call whatever the number of chunks: under ZeRO 3 every rank
calls the same modules equally often, and the weight is there only inside the call of the module that owns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from train.losses.objective import Losses, Objective, divergence

CHUNK = 2**27  # logits that may stand at once: half a GiB in float32


def fuse_loss(head: nn.Module) -> bool:
    """Rebind `head`: `head(hidden_RTD, labels_T, objective)` is `fused_losses`, `head(hidden)` what it was.

    False, and nothing is changed, where the head is more than a matrix (a bias, LoRA).
    """
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    vars(head)["forward"] = partial(_head, head)
    return True


def _head(head: nn.Linear, hidden: Tensor, *objective: Any) -> Tensor | Losses:
    return fused_losses(hidden, head.weight, *objective) if objective else linear(hidden, head.weight)


def fused_losses(
    hidden_RTD: Tensor, weight_VD: Tensor, labels_T: Tensor, objective: Objective, chunk: int = CHUNK
) -> Losses:
    """The losses of logits `hidden @ weight.T`; at most `chunk` stand at once, what is made of them included."""
    rows = len(hidden_RTD)
    standing = rows + (len(objective.pairs) + 2 if objective.pairs else 0)
    size = max(1, chunk // (standing * len(weight_VD)))
    return Losses(*_FusedLosses.apply(hidden_RTD, weight_VD, labels_T.split(size), objective))


class _FusedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_RTD: Tensor, weight_VD: Tensor, chunks: Sequence[Tensor], objective: Objective
    ) -> tuple[Tensor, ...]:
        dtype, wanted = _compute_dtype(hidden_RTD), ctx.needs_input_grad[:2]
        weight, given = weight_VD.to(dtype), objective.no_grad_rows
        entropy_R, correct_R = torch.zeros(2, len(hidden_RTD), device=hidden_RTD.device).unbind()
        divergence_L = entropy_R.new_zeros(len(objective.pairs))
        hidden_grads: list[Tensor] = []
        weight_grad: Tensor | None = None
        states = hidden_RTD.to(dtype).split([len(labels) for labels in chunks], dim=1)
        for hidden, labels in zip(states, chunks):
            *sums, errors = _errors((hidden @ weight.T).float(), labels, objective)
            error = errors.to(dtype)
            for total, part in zip((entropy_R, correct_R, divergence_L), sums):
                total += part
            if wanted[0]:
                hidden_grads.append(error @ weight)
            if wanted[1]:
                part = (error.flatten(0, 1).T @ hidden[given:].flatten(0, 1)).to(weight_VD.dtype)
                weight_grad = part if weight_grad is None else weight_grad.add_(part)
        ctx.grads = (_padded(hidden_grads, hidden_RTD, given) if wanted[0] else None, weight_grad)
        ctx.mark_non_differentiable(entropy_R, correct_R, divergence_L)
        parts = [share * each for share, each in zip(objective.weights, entropy_R) if share]
        parts += [pair.weight * each for pair, each in zip(objective.pairs, divergence_L)]
        return torch.stack(parts).sum(), entropy_R, correct_R, divergence_L

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = (None if each is None else each.mul_(grad) for each in ctx.grads)
        del ctx.grads  # scaled in place, once
        return hidden, weight, None, None


def _errors(logits_RCV: Tensor, labels_C: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(cross-entropy and correct tokens by row, divergence by pair, gradient of the objective in the logits of rows
    that have one); the logits are overwritten."""
    rows, given = len(logits_RCV), objective.no_grad_rows
    picked = labels_C[:, None].expand(rows, -1, 1)
    correct_R = (logits_RCV.argmax(-1) == labels_C).sum(1)
    norms = logits_RCV.logsumexp(-1, keepdim=True)
    entropy_R = torch.stack([each.sum() for each in norms - logits_RCV.gather(2, picked)])
    taught = [divergence(logits_RCV[each.student], logits_RCV[each.teacher], objective) for each in objective.pairs]
    divergence_L = torch.stack([value for value, _ in taught]) if taught else entropy_R.new_zeros(0)
    error = logits_RCV.sub_(norms).exp_().scatter_add_(2, picked, -torch.ones_like(norms))
    for row, share in zip(error, objective.weights):
        row.mul_(share)
    for pair, (_, pull) in zip(objective.pairs, taught):
        error[pair.student].add_(pull, alpha=pair.weight)
    return entropy_R, correct_R, divergence_L, error[given:]


def _padded(grads: list[Tensor], hidden_RTD: Tensor, given: int) -> Tensor:
    """Chunks of the gradient of hidden states, none for the rows that have none."""
    whole = torch.zeros_like(hidden_RTD)
    if grads:
        whole[given:] = torch.cat(grads, dim=1)
    return whole


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
