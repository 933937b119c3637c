"""Lay a batch out, look at it and prune it, in the order that the method asks for: the one place where it happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from evs.families import Adapter, MediaBatch, towers_of
from evs.methods.base import Method, depth
from evs.pruning import keep_mask, prune
from evs.types import DecoderInputs


@dataclass(frozen=True)
class Survivors:
    """`x` is what the language model reads: of the prompts as they were laid out, the tokens that are kept."""

    laid: DecoderInputs
    keep_N: Tensor
    x: DecoderInputs


@dataclass(frozen=True)
class Look:
    """A batch that is seen once, however many rates it is read at; by a method that prunes before, once a rate."""

    adapter: Adapter
    batch: MediaBatch
    method: Method

    def at(self, rates_V: Sequence[float], *, pruned: bool) -> Survivors:
        """Every video pruned at its rate. `pruned`: whether any is, or would be if there were one."""
        # Some schemes lay out unpruned prompts in another way; what is seen does not depend on it.
        laid = self._laid if pruned or self.adapter.scheme == "preserve" else self._unpruned
        before, grids = depth(self.method), self.adapter.grids(self.batch)
        if before is not None and any(rates_V):
            keep_N = keep_mask(laid, self.adapter.pixels(self.batch), grids, rates_V, self.method)
            return Survivors(laid, keep_N, self.adapter.see_kept(self.batch, laid, keep_N, before))
        # Once a rate at rate 0 too: under ZeRO 3 every rank must call the tower equally often.
        seen, seen_MC = self._seen if before is None else self.adapter.see(self.batch, self._laid)
        pixels = self.method.needs == "pixels" and any(rates_V)
        keep_N = keep_mask(laid, self.adapter.pixels(self.batch) if pixels else seen_MC, grids, rates_V, self.method)
        return Survivors(laid, keep_N, prune(replace(seen, positions_PN=laid.positions_PN), keep_N))

    @cached_property
    def _laid(self) -> DecoderInputs:
        return self.adapter.lay(self.batch)

    @cached_property
    def _unpruned(self) -> DecoderInputs:
        positions_PN = self.adapter.positions(self.batch, pruned=False)
        return replace(self._laid, positions_PN=positions_PN.to(self._laid.positions_PN.device))

    @cached_property
    def _seen(self) -> tuple[DecoderInputs, Tensor]:
        return self.adapter.see(self.batch, self._laid)


def check_place(adapter: Adapter, method: Method) -> None:
    """Raises ValueError for a method that scores or prunes where the family cannot."""
    before, family = depth(method), adapter.model.config.model_type
    if method.needs == "pixels" and not hasattr(adapter, "pixels"):
        raise ValueError(
            f"method={method.name} scores uint8 pixels, and {family} resizes frames in floating point: use method=evs"
        )
    if before is None:
        return
    vision: Any = towers_of(adapter.model).vision
    if before > (blocks := len(vision.blocks)):
        raise ValueError(f"method.prune_at={before}: the tower of {family} has {blocks} blocks: use 0 to {blocks}")
