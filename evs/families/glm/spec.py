"""What GLM-4.1V and GLM-4.5V are made of."""

from __future__ import annotations

from typing import Any

from evs.families.glm.adapter import GlmVL
from evs.families.glm.processor import GlmProcessor, GlmVideos
from evs.families.spec import FamilySpec, TextShape, Towers, TowerShape


def tower(config: Any) -> TowerShape:
    """The blocks' MLPs are as wide as the tower's output; `intermediate_size` is the merger's."""
    vision = config.vision_config
    width, out, merge = vision.hidden_size, vision.out_hidden_size, vision.spatial_merge_size
    return TowerShape(
        blocks=vision.depth,
        width=width,
        mlp_width=out,
        gated_mlp=True,
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=merge,
        merger_weights=out * (merge**2 * width + out + 3 * vision.intermediate_size),
        channels=vision.in_channels,
    )


def dense_text(config: Any) -> TextShape:
    """GLM-4.1V."""
    text = config.get_text_config()
    return _text(text, text.hidden_size // text.num_attention_heads, dense=text.num_hidden_layers)


def mixture_text(config: Any) -> TextShape:
    """GLM-4.5V: a mixture of experts in all but the first layers."""
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return _text(text, head, dense=min(text.first_k_dense_replace, text.num_hidden_layers))


def _text(text: Any, head: int, dense: int) -> TextShape:
    width, layers, inner = text.hidden_size, text.num_hidden_layers, text.intermediate_size
    weights = layers * width * head * 2 * (text.num_attention_heads + text.num_key_value_heads)
    weights += dense * 3 * width * inner
    if layers > dense:
        inner = (text.num_experts_per_tok + text.n_shared_experts) * text.moe_intermediate_size
        weights += (layers - dense) * width * (text.n_routed_experts + 3 * inner)
    return TextShape(weights, layers, head * text.num_attention_heads, inner)


ATTENTION = r".*language_model.*\.self_attn\.[qkvo]_proj"
SPECS = tuple(
    FamilySpec(
        model_types=(name,),
        adapter=GlmVL,
        towers=Towers("model.visual", "model.language_model", "lm_head"),
        mergers=("model.visual.post_layernorm", "model.visual.downsample", "model.visual.merger"),
        tower_shape=tower,
        text_shape=text,
        lora_targets=lora_targets,
        processor=GlmProcessor,
        video_processor=GlmVideos,
        chat={
            "header": "<|assistant|>\n",
            "ends": ("<|user|>", "<|observation|>", "<|endoftext|>"),
            "closing": "<|user|>",
        },
    )
    for name, text, lora_targets in (
        ("glm4v", dense_text, rf"{ATTENTION}|.*language_model.*\.(gate_up|down)_proj"),
        ("glm4v_moe", mixture_text, ATTENTION),  # peft takes a name of an MLP for that of all experts, without dropout
    )
)
