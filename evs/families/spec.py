"""What the project knows of a model family besides its forward pass, as data: the code elsewhere names no family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn


class Towers(NamedTuple):
    """A model's modules by what they do; in a FamilySpec, their paths within the Hugging Face model."""

    vision: Any
    language: Any  # the text model without its head
    head: Any

    def of(self, model: nn.Module) -> Towers:
        """The modules of a model at these paths."""
        return Towers(*(model.get_submodule(path) for path in self))


@dataclass(frozen=True)
class TowerShape:
    """The sizes of a vision tower that operation counts and memory forecasts read."""

    blocks: int
    width: int
    mlp_width: int  # inner width of a block's MLP
    gated_mlp: bool  # three matrices instead of two
    patch_size: int  # side of a patch, in pixels
    temporal_patch_size: int  # frames of a temporal grid
    merge_size: int  # patches on each side of a token
    merger_weights: int  # weights that one token passes through between the tower and the language model
    channels: int = 3
    full_attention_blocks: int | None = None  # blocks that attend to whole temporal grids; None: all
    window_patches: int = 0  # patches of a window of the other blocks

    @property
    def weights(self) -> int:
        """Weights of matrices that one patch passes through in the tower."""
        embedding = self.channels * self.temporal_patch_size * self.patch_size**2 * self.width
        mlp = (3 if self.gated_mlp else 2) * self.width * self.mlp_width
        return self.blocks * (4 * self.width**2 + mlp) + embedding


@dataclass(frozen=True)
class TextShape:
    """The sizes of a language model that operation counts and memory forecasts read."""

    weights: int  # weights of matrices that one token passes through in all layers
    attention_layers: int  # layers of softmax attention
    attention_width: int  # query heads times the width of a head
    mlp_width: int  # inner width of the MLP, or of all experts that one token passes through
    recurrent_layers: int = 0  # layers that carry a state from token to token
    state: tuple[int, int, int] = (0, 0, 0)  # of such a layer: heads, and the two sides of a head's state
    chunk: int = 64  # tokens that the recurrence of transformers takes at once


# Linear layers of the language model. Not the output projection of a state-space mixer: its training kernel reads the
# weight directly, and LoRA in that module would be skipped silently.
LORA_TARGETS = r".*language_model.*\.((q|k|v|o|gate|up|down|in)_proj(_\w+)?|(?<!\.mixer\.)out_proj)"


def unchanged(processor: Any) -> Any:
    """The processor itself, for families whose processor has the interface that `data.encoding` calls."""
    return processor


@dataclass(frozen=True)
class FamilySpec:
    """One or more `model_type`s of transformers that differ in nothing stated here."""

    model_types: tuple[str, ...]
    adapter: Callable[..., Any]  # (model, spec, scheme) -> evs.families.base.Adapter
    towers: Towers
    mergers: tuple[str, ...]  # paths of the modules between the vision tower and the language model
    tower_shape: Callable[[Any], TowerShape]  # of the model's configuration
    text_shape: Callable[[Any], TextShape]
    # Hugging Face processor, and video processor -> the same with the interface that `data.encoding` calls.
    processor: Callable[[Any], Any] = unchanged
    video_processor: Callable[[Any], Any] = unchanged
    chat: Mapping[str, Any] = field(default_factory=dict)  # fields of data.encoding.labels.ChatMarkers; ChatML if empty
    schemes: tuple[str, ...] = ("preserve",)  # position schemes under pruning
    uint8_pixels: bool = True  # frames are resized as uint8: methods can score pixels and prune before the tower
    # Packages whose kernels restart a recurrence at the borders of packed samples.
    kernels: tuple[str, ...] = ()
    # Parts of the names of parameters that servers do not read, which are therefore never trained.
    untrained: tuple[str, ...] = ()
    lora_targets: str = LORA_TARGETS  # regular expression over module names
    # Endings of the names of experts whose published layout is transposed, with the axis of the hidden size there.
    transposed_experts: Mapping[str, int] = field(default_factory=dict)

    def group_of(self, parameter: str) -> str:
        """vision, merger or language: the group of a parameter, by its name in a model however it is wrapped."""
        if any(_within(parameter, path) for path in self.mergers):
            return "merger"
        return "vision" if _within(parameter, self.towers.vision) else "language"


def _within(parameter: str, path: str) -> bool:
    return f".{path}." in f".{parameter}"
