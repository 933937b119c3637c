"""Lay a batch out, look at it and prune it, in the order that the method asks for: the one place where it happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from evs.adapters import Adapter, MediaBatch, towers_of
from evs.methods.base import Method, depth
from evs.prune import keep_mask, prune
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
        before = depth(self.method) if any(rates_V) else None
        pixels = self.method.needs == "pixels" and any(rates_V)
        seen_MC = self.adapter.pixels(self.batch) if pixels else self._seen[1]
        keep_N = keep_mask(laid, seen_MC, self.adapter.grids(self.batch), rates_V, self.method)
        if before is not None:
            return Survivors(laid, keep_N, self.adapter.see_kept(self.batch, laid, keep_N, before))
        full = replace(self._seen[0], positions_PN=laid.positions_PN)
        return Survivors(laid, keep_N, prune(full, keep_N))

    @cached_property
    def _laid(self) -> DecoderInputs:
        return self.adapter.lay(self.batch)

    @cached_property
    def _unpruned(self) -> DecoderInputs:
        return self.adapter.lay(self.batch, pruned=False)

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
