"""What a model family must offer, and what it needs from a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from evs.types import DecoderInputs, Grid


class MediaBatch(Protocol):
    """Several prompts packed end to end, on the CPU; media in prompt order, grids in patches before merging.

    Pixels are uint8 levels, which the adapter normalises on the model's device, or already normalised floats.
    """

    @property
    def input_ids_N(self) -> Tensor: ...
    @property
    def labels_N(self) -> Tensor: ...
    @property
    def segment_N(self) -> Tensor: ...
    @property
    def pixel_values_videos(self) -> Tensor | None: ...
    @property
    def video_grid_thw_V3(self) -> Tensor: ...
    @property
    def second_per_grid_V(self) -> Tensor: ...
    @property
    def video_normal(self) -> tuple[Sequence[float], Sequence[float]] | None: ...  # mean and std of level / 255
    @property
    def pixel_values(self) -> Tensor | None: ...
    @property
    def image_normal(self) -> tuple[Sequence[float], Sequence[float]] | None: ...
    @property
    def image_grid_thw_I3(self) -> Tensor: ...


class Adapter(Protocol):
    """One per model family, duck-typed on the Hugging Face model object, which it neither owns nor changes.

    `lay`, `see` and `read` are a forward pass in three steps: what was laid out and seen once can be pruned at several
    rates, each read on its own.
    """

    @property
    def model(self) -> Any: ...
    @property
    def scheme(self) -> str: ...

    def grids(self, batch: MediaBatch) -> list[Grid]:
        """The merged grid of every video of the batch."""
        ...

    def lay(self, batch: MediaBatch, *, pruned: bool = True) -> DecoderInputs:
        """The unpruned prompts, every token in its place, media not yet looked at: their rows are placeholders'.

        `pruned` says whether pruning follows: schemes that imitate a server differ from `preserve` only then.
        """
        ...

    def see(self, batch: MediaBatch, laid: DecoderInputs) -> tuple[DecoderInputs, Tensor]:
        """What was laid out with its media seen by the vision tower, and their [M, C] features, videos only."""
        ...

    def pixels(self, batch: MediaBatch) -> Tensor:
        """[M, C] uint8 pixels of the videos' tokens before the tower, on the CPU."""
        ...

    def see_kept(self, batch: MediaBatch, laid: DecoderInputs, keep_N: Tensor, depth: int) -> DecoderInputs:
        """The survivors of what was laid out, seen by a tower that drops the others before its block `depth`."""
        ...

    def read(self, x: DecoderInputs) -> Tensor:
        """[N, D] hidden states after the final norm, in the packed order of `x`."""
        ...
