"""Embed, encode and prune a batch, in the order that the pruning method needs. Every forward pass goes through here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from torch import Tensor

from evs.families import Adapter, MediaBatch, spec_of
from evs.methods.base import Method, depth
from evs.methods.pixels import PixelDelta
from evs.pruning import keep_mask, prune
from evs.score_area import score_area
from evs.sequence_parallel import SequenceGroup
from evs.shared_tower import SharedMedia
from evs.types import DecoderInputs


@dataclass(frozen=True)
class PrunedInputs:
    """The unpruned prompts, the [N] bool mask of kept tokens, and the inputs of the language model."""

    embedded: DecoderInputs
    keep_N: Tensor
    x: DecoderInputs


@dataclass(frozen=True)
class EncodedBatch:
    """A batch whose media are encoded once and can be pruned at several rates.

    A method that prunes before or within the vision tower encodes them again for each rate. The ranks of a `group` hold
    the same batch.
    """

    adapter: Adapter
    batch: MediaBatch
    method: Method
    group: SequenceGroup | None = None

    def prune(self, rates_V: Sequence[float], *, pruned: bool) -> PrunedInputs:
        """The batch with each of its V videos pruned at its own rate.

        `pruned` is True if pruning is enabled, even when the batch holds no video: position schemes that imitate a
        server differ from `preserve` only then.
        """
        # Some schemes place unpruned prompts differently. Encoding does not depend on positions.
        embedded = self._embedded if pruned or self.adapter.scheme == "preserve" else self._unpruned
        block, grids = depth(self.method), self.adapter.grids(self.batch)
        if self.group is not None:
            # A method that prunes early encodes once per rate, as below.
            shared = self._shared if block is None else SharedMedia(self.adapter, self.batch, self.group)
            keep_N = shared.keep_mask(embedded, rates_V, self.method)
            return PrunedInputs(embedded, keep_N, shared.prune(embedded, keep_N, block if any(rates_V) else None))
        if block is not None and any(rates_V):
            keep_N = keep_mask(embedded, self.adapter.pixels(self.batch), grids, rates_V, self.method)
            return PrunedInputs(embedded, keep_N, self.adapter.encode_kept(self.batch, embedded, keep_N, block))
        # At rate 0 too, a method that prunes early encodes once per rate: under ZeRO 3 every rank must call the tower
        # equally often.
        encoded, features_MC = self._encoded if block is None else self.adapter.encode_media(self.batch, self._embedded)
        pixels = self.method.needs == "pixels" and any(rates_V)
        keep_N = keep_mask(
            embedded, self.adapter.pixels(self.batch) if pixels else features_MC, grids, rates_V, self.method
        )
        return PrunedInputs(embedded, keep_N, prune(replace(encoded, positions_PN=embedded.positions_PN), keep_N))

    def score_areas(self) -> list[list[float]]:
        """`score_area` of the videos of every sample, by the method's scores.

        Videos without one are skipped, and so are all videos whose uint8 pixels are not known.
        """
        grids, x = self.adapter.grids(self.batch), self._embedded
        areas: list[list[float]] = [[] for _ in range(int(x.segment_N.max()) + 1)]
        pixels = self.batch.pixel_values_videos
        known = pixels is not None and (not pixels.is_floating_point() or self.batch.video_normal is not None)
        if not (known and self.adapter.spec.uint8_pixels):
            return areas
        sizes, pixels_MC = [grid.tokens for grid in grids], self.adapter.pixels(self.batch)
        inputs_MC = pixels_MC if self.method.needs == "pixels" else self._encoded[1]
        samples = x.segment_N[x.video_N >= 0].tolist()
        for first, inputs, pixels, grid in zip(
            accumulate([0, *sizes]), inputs_MC.split(sizes), pixels_MC.split(sizes), grids
        ):
            area = score_area(self.method(inputs, grid), PixelDelta()(pixels, grid))
            areas[samples[first]] += [] if area is None else [area]
        return areas

    @cached_property
    def _shared(self) -> SharedMedia:
        assert self.group is not None
        return SharedMedia(self.adapter, self.batch, self.group)

    @cached_property
    def _embedded(self) -> DecoderInputs:
        # The ranks of a group embed only their slices, after pruning.
        return self.adapter.embed_prompt(self.batch, embed=self.group is None)

    @cached_property
    def _unpruned(self) -> DecoderInputs:
        positions_PN = self.adapter.positions(self.batch, pruned=False)
        return replace(self._embedded, positions_PN=positions_PN.to(self._embedded.positions_PN.device))

    @cached_property
    def _encoded(self) -> tuple[DecoderInputs, Tensor]:
        return self.adapter.encode_media(self.batch, self._embedded)


def check_place(adapter: Adapter, method: Method) -> None:
    """Raise ValueError if the family does not support the method's features or the place where it prunes."""
    check_method(adapter.model.config, method)


def check_method(config: Any, method: Method) -> None:
    """`check_place` for a Hugging Face configuration."""
    before, family, spec = depth(method), config.model_type, spec_of(config)
    if method.needs == "pixels" and not spec.uint8_pixels:
        raise ValueError(
            f"method={method.name} scores uint8 pixels, and {family} resizes frames in floating point: use method=evs"
        )
    if before is not None and before > (blocks := spec.tower_shape(config).blocks):
        raise ValueError(f"method.prune_at={before}: the tower of {family} has {blocks} blocks: use 0 to {blocks}")
