"""What the Qwen-VL families are made of."""

from __future__ import annotations

from typing import Any

from evs.families.qwen.qwen2_5_vl import Qwen25VL
from evs.families.qwen.qwen3_vl import Qwen3VL
from evs.families.spec import FamilySpec, TextShape, Towers, TowerShape
from evs.positions import SCHEMES

TOWERS = Towers("model.visual", "model.language_model", "lm_head")
MERGER, DEEPSTACK = "model.visual.merger", "model.visual.deepstack_merger_list"


def windowed_tower(config: Any) -> TowerShape:
    """Qwen2.5-VL: gated MLPs, and windows in all but some of the blocks."""
    vision = config.vision_config
    return _tower(
        vision,
        gated_mlp=True,
        full_attention_blocks=len(vision.fullatt_block_indexes),
        window_patches=(vision.window_size // vision.patch_size) ** 2,
    )


def deepstack_tower(config: Any) -> TowerShape:
    """Qwen3-VL: a merger of its own for every deepstack level. Qwen3.5 has no such levels."""
    return _tower(config.vision_config, gated_mlp=False)


def _tower(vision: Any, **more: Any) -> TowerShape:
    merged = vision.hidden_size * vision.spatial_merge_size**2
    levels = 1 + len(getattr(vision, "deepstack_visual_indexes", ()))
    return TowerShape(
        blocks=vision.depth,
        width=vision.hidden_size,
        mlp_width=vision.intermediate_size,
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        merger_weights=levels * merged * (merged + vision.out_hidden_size),
        channels=vision.in_channels,
        **more,
    )


def dense_text(config: Any) -> TextShape:
    """Grouped-query attention and a gated MLP in every layer."""
    text = config.get_text_config()
    return _attending(text, 3 * text.hidden_size * text.intermediate_size, text.intermediate_size)


def mixture_text(config: Any) -> TextShape:
    """The same with a mixture of experts for the MLP."""
    text = config.get_text_config()
    return _attending(text, *_experts(text))


def _attending(text: Any, mlp_weights: int, mlp_width: int) -> TextShape:
    head, layers = _head(text), text.num_hidden_layers
    projections = text.hidden_size * head * 2 * (text.num_attention_heads + text.num_key_value_heads)
    return TextShape(layers * (mlp_weights + projections), layers, head * text.num_attention_heads, mlp_width)


def hybrid_text(config: Any) -> TextShape:
    """Qwen3.5: gated DeltaNet in most layers, attention with an output gate in the others."""
    text = config.get_text_config()
    mixture = getattr(text, "num_experts_per_tok", None)
    width, head, layers = text.hidden_size, _head(text), text.num_hidden_layers
    dense = (3 * width * text.intermediate_size, text.intermediate_size) if not mixture else ()
    mlp_weights, mlp_width = dense or _experts(text)
    recurrent = text.layer_types.count("linear_attention")
    attention = width * head * (3 * text.num_attention_heads + 2 * text.num_key_value_heads)
    keys = text.linear_num_key_heads * text.linear_key_head_dim
    values = text.linear_num_value_heads * text.linear_value_head_dim
    delta = width * (2 * keys + 3 * values + 2 * text.linear_num_value_heads)
    convolution = text.linear_conv_kernel_dim * (2 * keys + values)
    return TextShape(
        weights=layers * mlp_weights + (layers - recurrent) * attention + recurrent * (delta + convolution),
        attention_layers=layers - recurrent,
        attention_width=head * text.num_attention_heads,
        mlp_width=mlp_width,
        recurrent_layers=recurrent,
        state=(text.linear_num_value_heads, text.linear_key_head_dim, text.linear_value_head_dim),
    )


def _experts(text: Any) -> tuple[int, int]:
    """(Weights that one token passes through in a layer of experts, the inner width of those experts)."""
    shared = getattr(text, "shared_expert_intermediate_size", 0)
    width = text.num_experts_per_tok * text.moe_intermediate_size + shared
    return text.hidden_size * (text.num_experts + 3 * width + bool(shared)), width


def _head(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


DELTANET = ("fla", "causal_conv1d")
SPECS = (
    FamilySpec(("qwen2_5_vl",), Qwen25VL, TOWERS, (MERGER,), windowed_tower, dense_text, schemes=SCHEMES),
    FamilySpec(("qwen3_vl",), Qwen3VL, TOWERS, (MERGER, DEEPSTACK), deepstack_tower, dense_text),
    FamilySpec(
        ("qwen3_vl_moe",),
        Qwen3VL,
        TOWERS,
        (MERGER, DEEPSTACK),
        deepstack_tower,
        mixture_text,
        transposed_experts={".mlp.experts.gate_up_proj": 1, ".mlp.experts.down_proj": 2},
    ),
    FamilySpec(("qwen3_5", "qwen3_5_moe"), Qwen3VL, TOWERS, (MERGER,), deepstack_tower, hybrid_text, kernels=DELTANET),
)
