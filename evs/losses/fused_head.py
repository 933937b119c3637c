"""The language model's head fused with its loss, in chunks of tokens, so that not all logits are in memory at once.

Gradients are computed in the forward pass, next to the logits, so backward neither keeps nor recomputes the logits.
Liger's kernel does the same, but its chunks shrink as the vocabulary grows and each adds to the full gradient of the
weight: it is many times slower for the few labelled tokens of a video (docs/performance.md). All chunks share one call
of the head: under ZeRO 3 all ranks must call the same modules equally often, and the weight is gathered only inside the
call of the module that owns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from evs.losses.objective import Losses, Objective, divergence
from evs.patch import patch_forward

CHUNK = 2**27  # logits in memory at once: half a GiB in float32


def fuse_loss(head: nn.Module) -> bool:
    """Let `head(hidden_RTD, labels_T, objective)` return `fused_losses`; `head(hidden)` still returns logits.

    Returns False and changes nothing if the head is not a plain matrix (if it has a bias or LoRA).
    """
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    patch_forward(head, partial(_head, head))
    return True


def _head(head: nn.Linear, hidden: Tensor, *objective: Any) -> Tensor | Losses:
    return fused_losses(hidden, head.weight, *objective) if objective else linear(hidden, head.weight)


def fused_losses(
    hidden_RTD: Tensor, weight_VD: Tensor, labels_T: Tensor, objective: Objective, chunk: int = CHUNK
) -> Losses:
    """The losses of the logits `hidden @ weight.T`.

    At most `chunk` numbers are in memory at once, counting logits and the intermediate results of divergences.
    """
    rows = len(hidden_RTD)
    buffers = rows + (len(objective.pairs) + 2 if objective.pairs else 0)
    size = max(1, chunk // (buffers * len(weight_VD)))
    if not torch.is_grad_enabled():  # otherwise the forward pass would compute gradients that nobody reads
        hidden_RTD, weight_VD = hidden_RTD.detach(), weight_VD.detach()
    return Losses(*_FusedLosses.apply(hidden_RTD, weight_VD, labels_T.split(size), objective))


class _FusedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_RTD: Tensor, weight_VD: Tensor, chunks: Sequence[Tensor], objective: Objective
    ) -> tuple[Tensor, ...]:
        dtype, (hidden_needs_grad, weight_needs_grad) = _compute_dtype(hidden_RTD), ctx.needs_input_grad[:2]
        weight, no_grad_rows = weight_VD.to(dtype), objective.no_grad_rows
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
            if hidden_needs_grad:
                hidden_grads.append(error @ weight)
            if weight_needs_grad:
                part = (error.flatten(0, 1).T @ hidden[no_grad_rows:].flatten(0, 1)).to(weight_VD.dtype)
                weight_grad = part if weight_grad is None else weight_grad.add_(part)
        ctx.grads = (_padded(hidden_grads, hidden_RTD, no_grad_rows) if hidden_needs_grad else None, weight_grad)
        ctx.mark_non_differentiable(entropy_R, correct_R, divergence_L)
        parts = [weight * entropy for weight, entropy in zip(objective.weights, entropy_R) if weight]
        parts += [pair.weight * value for pair, value in zip(objective.pairs, divergence_L)]
        return torch.stack(parts).sum(), entropy_R, correct_R, divergence_L

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = (None if saved is None else saved.mul_(grad) for saved in ctx.grads)
        del ctx.grads  # they are scaled in place, so a second backward would scale them twice
        return hidden, weight, None, None


def _errors(logits_RCV: Tensor, labels_C: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(cross-entropy [R], correct tokens [R], divergence [L], gradient of the objective with respect to the logits).

    The gradient omits the rows without gradient. The logits of C tokens are overwritten.
    """
    rows = len(logits_RCV)
    target_RC1 = labels_C[:, None].expand(rows, -1, 1)
    correct_R = (logits_RCV.argmax(-1) == labels_C).sum(1)
    norms = logits_RCV.logsumexp(-1, keepdim=True)
    entropy_R = torch.stack([row.sum() for row in norms - logits_RCV.gather(2, target_RC1)])
    divergences = [
        divergence(logits_RCV[pair.student], logits_RCV[pair.teacher], objective) for pair in objective.pairs
    ]
    divergence_L = torch.stack([value for value, _ in divergences]) if divergences else entropy_R.new_zeros(0)
    error = logits_RCV.sub_(norms).exp_().scatter_add_(2, target_RC1, -torch.ones_like(norms))
    for row, weight in zip(error, objective.weights):
        row.mul_(weight)
    for pair, (_, grad_CV) in zip(objective.pairs, divergences):
        error[pair.student].add_(grad_CV, alpha=pair.weight)
    return entropy_R, correct_R, divergence_L, error[objective.no_grad_rows :]


def _padded(grads: list[Tensor], hidden_RTD: Tensor, no_grad_rows: int) -> Tensor:
    """The gradient of the hidden states [R, T, D] from its chunks, zero in the rows without gradient."""
    grad_RTD = torch.zeros_like(hidden_RTD)
    if grads:
        grad_RTD[no_grad_rows:] = torch.cat(grads, dim=1)
    return grad_RTD


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
