"""What can be asked of a tiny checkpoint, whatever its family."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Sizes:
    """Widths and depths. Text heads are a multiple of 32 wide: rotary sections and servers' kernels ask it."""

    text_width: int = 256
    text_layers: int = 4
    text_heads: int = 4
    text_kv_heads: int = 2
    text_mlp: int = 512
    vision_width: int = 128
    vision_depth: int = 4
    vision_heads: int = 4
    vision_mlp: int = 256
    patch: int | None = None  # pixels of a patch's side; None: the family's
    full_attention: bool = False  # in every vision block, where the family has windows
    init: float = 0.02  # standard deviation of the random weights
    vocabulary: int = 768
    experts: int = 4  # of a mixture of experts; Nemotron takes 0 too, for a language model without any
    tied: bool = False  # input and output embeddings are one matrix
