"""The two data types of the library: a video's token grid, and the inputs of the language model.

Axis legend, used in names: N packed tokens, D width, P rope rows (3), V videos, T H W one video's merged grid,
M visual tokens, C channels of the features that a pruning method scores.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

IGNORE = -100  # label of a token that carries no loss


@dataclass(frozen=True)
class Grid:
    """One video's tokens after the patch merger: T temporal grids of H rows and W columns."""

    T: int
    H: int
    W: int

    def __post_init__(self) -> None:
        if min(self.T, self.H, self.W) < 1:
            raise ValueError(f"a grid needs at least one token on every axis, got {self.T}x{self.H}x{self.W}")

    @property
    def tokens_per_frame(self) -> int:
        return self.H * self.W

    @property
    def tokens(self) -> int:
        return self.T * self.H * self.W


@dataclass(frozen=True)
class DecoderInputs:
    """The inputs of the language model, several samples packed end to end.

    Before media are encoded, their rows hold the embeddings of placeholder tokens and `deepstack` is empty.
    """

    embeds_ND: Tensor
    positions_PN: Tensor  # in the unpruned prompt, which survivors keep; P = 1 without rotary positions
    segment_N: Tensor  # index of the token's sample, non-decreasing
    labels_N: Tensor  # IGNORE = no loss; unshifted: labels_N[i] is token i itself
    video_N: Tensor  # index of the token's video in the batch, -1 elsewhere
    visual_N: Tensor  # bool: image or video token
    deepstack: tuple[
        Tensor, ...
    ] = ()  # [M, D] each: rows that further decoder layers add to the visual tokens, in packed order
