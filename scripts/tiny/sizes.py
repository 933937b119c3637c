"""What can be asked of a tiny checkpoint, whatever its family."""

from __future__ import annotations

from dataclasses import dataclass

from train.ranges import number


@dataclass
class Sizes:
    """Widths and depths. Text heads are a multiple of 32 wide: rotary sections and servers' kernels ask it."""

    text_width: int = number(256, least=1)
    text_layers: int = number(4, least=1)
    text_heads: int = number(4, least=1)
    text_kv_heads: int = number(2, least=1)
    text_mlp: int = number(512, least=1)
    vision_width: int = number(128, least=1)
    vision_depth: int = number(4, least=1)
    vision_heads: int = number(4, least=1)
    vision_mlp: int = number(256, least=1)
    patch: int | None = number(None, least=1)  # pixels of a patch's side; None: the family's
    full_attention: bool = False  # in every vision block, where the family has windows
    init: float = number(0.02, above=0)  # standard deviation of the random weights
    vocabulary: int = number(768, least=1)
    experts: int = number(4, least=0)  # of a mixture of experts; Nemotron takes 0 too, for a language model without any
    tied: bool = False  # input and output embeddings are one matrix
