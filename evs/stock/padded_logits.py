"""The logits and the loss of pruned prompts, in the padded rows that their caller knows.

A trainer compares `logits[i]` with `labels[i + 1]`. So row i of the logits holds the prediction of the last survivor at
or before i wherever i or i + 1 is a survivor, and zeros elsewhere: on padding, and within runs of dropped tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from evs.types import IGNORE, DecoderInputs


class Survivors(NamedTuple):
    """What the language model returned for the kept tokens, and where these are in the caller's rows."""

    hidden_SD: Tensor
    x: DecoderInputs
    index_S: Tensor  # in the B * L tokens of the rows, ascending
    shape: tuple[int, int]  # B rows of L tokens

    def targets(self) -> Tensor:
        """[T] the survivors that have a label. None of them begins a sample."""
        return (self.x.labels_N != IGNORE).nonzero().squeeze(1)

    def sources(self, columns: slice | Tensor = slice(None)) -> Tensor:
        """[B, K] the survivor whose logits stand in a column of each row, -1 for zeros."""
        survivor_S = torch.arange(len(self.index_S), device=self.index_S.device)
        source_L = torch.full((self.shape[0] * self.shape[1],), -1, device=self.index_S.device)
        follows_S = self.x.segment_N[1:] == self.x.segment_N[:-1]
        source_L[self.index_S[1:][follows_S] - 1] = survivor_S[:-1][follows_S]
        source_L[self.index_S] = survivor_S
        return source_L.view(self.shape)[:, columns]

    def padded_hidden(self) -> Tensor:
        """[B, L, D] the hidden states that the rows of the logits are computed from."""
        source_BL = self.sources()
        filled_BL = source_BL >= 0
        padded = self.hidden_SD.new_zeros(*source_BL.shape, self.hidden_SD.shape[-1])
        return padded.index_put((filled_BL,), self.hidden_SD[source_BL[filled_BL]])

    def labels(self) -> Tensor:
        """[B, L] the labels of survivors, IGNORE elsewhere."""
        labels_L = torch.full((self.shape[0] * self.shape[1],), IGNORE, device=self.index_S.device)
        labels_L[self.index_S] = self.x.labels_N
        return labels_L.view(self.shape)


def padded_logits(head: Any, out: Survivors, columns: slice | Tensor = slice(None)) -> Tensor:
    """[B, K, V] the logits of some columns of the caller's rows, from one call of the head."""
    source_BK = out.sources(columns)
    filled_BK = source_BK >= 0
    logits_RV = head(out.hidden_SD[source_BK[filled_BK]]).to(source_BK.device)
    return logits_RV.new_zeros(*source_BK.shape, logits_RV.shape[-1]).index_put((filled_BK,), logits_RV)
