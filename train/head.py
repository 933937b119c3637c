"""The head and its loss as one call of one module, in chunks: the labelled tokens' logits never stand together.

Gradients are made where the logits are, so backward neither keeps nor recomputes them; Liger's kernel does the same on
a GPU. One call whatever the number of chunks: under ZeRO 3 every rank calls the same modules equally often, and the
weight is there only inside the call of the module that owns it.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

CHUNK = 2**27  # logits that may stand at once: half a GiB in float32


def fuse_loss(head: nn.Module) -> bool:
    """Rebind `head`: `head(hidden_TD, labels_T)` is (summed cross-entropy, correct), `head(hidden_TD)` what it was.

    False, and nothing is changed, where the head is more than a matrix (a bias, LoRA).
    """
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    vars(head)["forward"] = partial(_head, head)
    return True


def _head(head: nn.Linear, hidden_TD: Tensor, labels_T: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    if labels_T is None:
        return linear(hidden_TD, head.weight)
    return summed_cross_entropy(hidden_TD, head.weight, labels_T)


def summed_cross_entropy(
    hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Scalars float32: the cross-entropy of `hidden @ weight.T` summed over the rows, and in how many of them the label
    has the largest logit; at most `chunk` logits at once."""
    if hidden_TD.is_cuda and len(hidden_TD) and find_spec("liger_kernel") is not None:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        out = liger_fused_linear_cross_entropy(
            hidden_TD, weight_VD, labels_T, reduction="sum", return_token_accuracy=True
        )
        return out.loss.float(), out.token_accuracy.detach() * len(labels_T)
    rows = max(1, chunk // len(weight_VD))
    return _SummedCrossEntropy.apply(hidden_TD, weight_VD, labels_T, rows)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        dtype, wanted = _compute_dtype(hidden_TD), ctx.needs_input_grad[:2]
        weight = weight_VD.to(dtype)
        loss, correct = torch.zeros(2, device=hidden_TD.device).unbind()
        hidden_grads: list[Tensor] = []
        weight_grad: Tensor | None = None
        for hidden, labels in zip(hidden_TD.to(dtype).split(rows), labels_T.split(rows)):
            logits = (hidden @ weight.T).float()
            correct += (logits.argmax(-1) == labels).sum()
            norms = logits.logsumexp(-1, keepdim=True)
            loss += (norms - logits.gather(1, labels[:, None])).sum()
            if not any(wanted):
                continue
            error = logits.sub_(norms).exp_().scatter_add_(1, labels[:, None], -torch.ones_like(norms)).to(dtype)
            if wanted[0]:
                hidden_grads.append(error @ weight)
            if wanted[1]:
                part = (error.T @ hidden).to(weight_VD.dtype)
                weight_grad = part if weight_grad is None else weight_grad.add_(part)
        ctx.grads = (torch.cat(hidden_grads).to(hidden_TD.dtype) if hidden_grads else None, weight_grad)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight = (None if each is None else each.mul_(grad) for each in ctx.grads)
        del ctx.grads  # scaled in place, once
        return hidden, weight, None, None


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
