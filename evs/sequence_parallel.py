"""Sequence parallelism (Ulysses, arXiv 2309.14509): the ranks of a group share one packed row, after pruning.

Each rank runs the language model on a slice of the surviving tokens. Only attention mixes tokens: before it the ranks
exchange all heads of a slice for all tokens of a share of the heads (`HeadExchange`), and back after it. The hidden
states that predict labelled tokens are then shared out evenly, since they are mostly at the end of a row. A rank's
gradients are those of its slice, so their sum over all ranks is the gradient of the step.

`UlyssesSPAttentionHF` of DeepSpeed does not support packed samples without FlashAttention: it drops the mask
(`uattn_wrapper` sets `attention_mask = None`) and rebuilds a block mask that is causal only. It also takes over the
attention of the vision tower, which has no `position_ids` and fails its assertion. accelerate's `ParallelismConfig`
uses the same class, and under DeepSpeed engines only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from evs.losses.objective import Losses

MARKER = "exchanges_heads"  # attribute of attention functions that `exchanging` made


@dataclass(frozen=True)
class Slice:
    """The tokens of a row that one rank processes, with padding so that all ranks process equally many."""

    begin: int
    end: int
    padding: int

    def take(self, values_N: Tensor) -> Tensor:
        """The values of the slice's tokens, zero for padding."""
        return self.padded(values_N[self.begin : self.end])

    def padded(self, part: Tensor) -> Tensor:
        """The slice's own values, then zeros for padding."""
        return torch.cat([part, part.new_zeros(self.padding, *part.shape[1:])]) if self.padding else part


@dataclass(frozen=True)
class SequenceGroup:
    """The ranks that share a row."""

    process_group: Any
    rank: int  # within the group
    size: int

    def own_slice(self, tokens: int) -> Slice:
        """This rank's tokens of a row of `tokens`. Padding follows the last token of the row."""
        return self.slices(tokens)[self.rank]

    def slices(self, tokens: int) -> list[Slice]:
        """The tokens of every rank of a row of `tokens`."""
        length = -(-tokens // self.size)
        borders = [min(length * number, tokens) for number in range(self.size + 1)]
        return [Slice(begin, end, length - (end - begin)) for begin, end in pairwise(borders)]

    def share(self, rows: int) -> slice:
        """This rank's share of `rows` that every rank holds."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def gathered(self, local_ND: Tensor, index_T: Tensor, tokens: int) -> Tensor:
        """[T, D] the hidden states of tokens `index_T`, ascending, of a row of `tokens`, on every rank.

        `local_ND` are those of this rank's slice.
        """
        own, rank_T = self.own_slice(tokens), index_T // -(-tokens // self.size)
        counts = rank_T.bincount(minlength=self.size).tolist()
        return self.concatenated(local_ND[index_T[rank_T == self.rank] - own.begin], counts)

    def concatenated(self, rows_TD: Tensor, counts: list[int]) -> Tensor:
        """The rows of all ranks, on every rank; `counts` are those of each rank."""
        if not sum(counts):
            return rows_TD
        sent = [len(rows_TD)] * self.size
        return _AllToAll.apply(rows_TD.repeat(self.size, 1), self.process_group, sent, counts)

    def broadcast_mask(self, mask_N: Tensor) -> Tensor:
        """The mask of the group's first rank, on every rank. Masks of different GPUs can differ by rounding."""
        mask = mask_N.byte()
        dist.broadcast(mask, dist.get_global_rank(self.process_group, 0), group=self.process_group)
        return mask.bool()

    def exchange_rows(self, rows_RD: Tensor, counts: list[int], wanted: list[Tensor]) -> Tensor:
        """The rows of the group that this rank needs, in ascending order of their number.

        The rows of all ranks are numbered in rank order; rank r holds `counts[r]` of them. `wanted[r]` are the numbers
        of the rows that rank r needs, ascending, on the CPU.
        """
        if not sum(counts):
            return rows_RD
        first = torch.tensor([0, *counts]).cumsum(0)
        own = [index[(index >= first[self.rank]) & (index < first[self.rank + 1])] for index in wanted]
        received = torch.bucketize(wanted[self.rank], first[1:], right=True).bincount(minlength=self.size)
        rows_RD = rows_RD[(torch.cat(own) - first[self.rank]).to(rows_RD.device)]
        return _AllToAll.apply(rows_RD, self.process_group, [len(index) for index in own], received.tolist())

    def total(self, losses: Losses) -> Losses:
        """The sums over the group of the losses of every rank's share. The gradient stays that of the own share."""
        values = torch.cat([part.detach().reshape(-1) for part in losses])
        dist.all_reduce(values, group=self.process_group)
        total, *sums = values.split([part.numel() for part in losses])
        return Losses(losses.total + (total[0] - losses.total.detach()), *sums)


@dataclass
class HeadExchange:
    """Exchanges slices of tokens for shares of heads. `lengths` are those of the samples of the padded row."""

    group: SequenceGroup
    lengths: list[int]
    calls: int = 0  # of `attend`

    def attend(self, core: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[1, n, heads, d] attention of each sample to itself, of [1, heads, n, d] slices of n tokens each.

        `core` is called once for each sample, without a mask.
        """
        self.calls += 1
        size = self.group.size
        if (copies := size // key.shape[1]) > 1:  # fewer key heads than ranks
            key, value = (x.repeat_interleave(copies, dim=1) for x in (key, value))
        # Under autocast, norms may have returned queries and keys in float32, which attention would cast as well.
        by_rank = [x[0].to(value.dtype).unflatten(0, (size, -1)) for x in (query, key, value)]
        heads = [x.shape[1] for x in by_rank]
        exchanged = self._all_to_all(torch.cat(by_rank, dim=1))  # [slices, heads / size, n, d]
        rows = exchanged.transpose(0, 1).flatten(1, 2)[None].split(heads, dim=1)
        samples = zip(*(x.split(self.lengths, dim=2) for x in rows))
        context = torch.cat([core(*sample, None)[0] for sample in samples], dim=1)[0]  # [tokens, heads / size, d]
        back = self._all_to_all(context.unflatten(0, (size, -1)))  # [size, n, heads / size, d]
        return back.transpose(0, 1).flatten(1, 2)[None]

    def _all_to_all(self, x: Tensor) -> Tensor:
        ones = [1] * self.group.size
        return _AllToAll.apply(x, self.group.process_group, ones, ones)


class _AllToAll(torch.autograd.Function):
    """Sends `sent[r]` rows of `x` to rank r, and concatenates the `received[r]` rows of every rank r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, process_group: Any, sent: list[int], received: list[int]) -> Tensor:
        ctx.arguments = (process_group, received, sent)
        out = x.new_empty(sum(received), *x.shape[1:])
        dist.all_to_all_single(out, x.contiguous(), received, sent, group=process_group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _AllToAll.apply(grad, *ctx.arguments), None, None, None


def exchanging(core: Callable[..., Any]) -> Callable[..., Any]:
    """The attention function `core` of transformers, which exchanges heads if it is called with `head_exchange`."""

    @wraps(core)
    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *args: Any,
        head_exchange: HeadExchange | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        if head_exchange is None:
            return core(module, query, key, value, attention_mask, *args, **kwargs)

        def of_sample(*inputs: Any) -> Any:
            return core(module, *inputs, *args, **kwargs)

        return head_exchange.attend(of_sample, query, key, value), None

    vars(attention)[MARKER] = True
    return attention


def exchanges(attention: Any) -> bool:
    """True if `exchanging` made this attention function. Others silently ignore `head_exchange`."""
    return getattr(attention, MARKER, False)
