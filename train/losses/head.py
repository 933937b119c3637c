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
    """Rebind `head`: `head(hidden_KTD, labels_T)` is `mean_cross_entropy`, `head(hidden_TD)` what it was.

    False, and nothing is changed, where the head is more than a matrix (a bias, LoRA).
    """
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    vars(head)["forward"] = partial(_head, head)
    return True


def _head(head: nn.Linear, hidden: Tensor, labels_T: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    if labels_T is None:
        return linear(hidden, head.weight)
    return mean_cross_entropy(hidden, head.weight, labels_T)


def mean_cross_entropy(
    hidden_KTD: Tensor, weight_VD: Tensor, labels_T: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 (mean over views of the cross-entropy summed over rows; that sum by view; by view in how many rows
    the label has the largest logit), of logits `hidden @ weight.T`, at most `chunk` at once. The first has a gradient.
    """
    views, rows, _ = hidden_KTD.shape
    if hidden_KTD.is_cuda and views == 1 and rows and find_spec("liger_kernel") is not None:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        out = liger_fused_linear_cross_entropy(
            hidden_KTD[0], weight_VD, labels_T, reduction="sum", return_token_accuracy=True
        )
        loss = out.loss.float()
        return loss, loss.detach()[None], out.token_accuracy.detach()[None] * rows
    return _MeanCrossEntropy.apply(hidden_KTD, weight_VD, labels_T, max(1, chunk // (views * len(weight_VD))))


class _MeanCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_KTD: Tensor, weight_VD: Tensor, labels_T: Tensor, rows: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype, wanted = _compute_dtype(hidden_KTD), ctx.needs_input_grad[:2]
        weight, views = weight_VD.to(dtype), len(hidden_KTD)
        losses_K, correct_K = torch.zeros(2, views, device=hidden_KTD.device).unbind()
        hidden_grads: list[Tensor] = []
        weight_grad: Tensor | None = None
        for hidden, labels in zip(hidden_KTD.to(dtype).split(rows, dim=1), labels_T.split(rows)):
            logits = (hidden @ weight.T).float()
            picked = labels[:, None].expand(views, -1, 1)
            correct_K += (logits.argmax(-1) == labels).sum(1)
            norms = logits.logsumexp(-1, keepdim=True)
            losses_K += torch.stack([each.sum() for each in norms - logits.gather(2, picked)])
            if not any(wanted):
                continue
            error = logits.sub_(norms).exp_().scatter_add_(2, picked, -torch.ones_like(norms)).div_(views).to(dtype)
            if wanted[0]:
                hidden_grads.append(error @ weight)
            if wanted[1]:
                part = (error.flatten(0, 1).T @ hidden.flatten(0, 1)).to(weight_VD.dtype)
                weight_grad = part if weight_grad is None else weight_grad.add_(part)
        ctx.grads = (torch.cat(hidden_grads, dim=1).to(hidden_KTD.dtype) if hidden_grads else None, weight_grad)
        ctx.mark_non_differentiable(losses_K, correct_K)
        return losses_K.mean(), losses_K, correct_K

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight = (None if each is None else each.mul_(grad) for each in ctx.grads)
        del ctx.grads  # scaled in place, once
        return hidden, weight, None, None


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
