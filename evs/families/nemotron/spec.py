"""What Nemotron Omni is made of."""

from __future__ import annotations

from typing import Any

from evs.families.nemotron.adapter import Nemotron
from evs.families.nemotron.processor import NemotronProcessor, NemotronVideos
from evs.families.spec import FamilySpec, TextShape, Towers, TowerShape


def radio_tower(config: Any) -> TowerShape:
    """RADIO, and the projector after pixel shuffle."""
    vision, merge = config.vision_config, round(1 / config.downsample_ratio)
    text_width = config.get_text_config().hidden_size
    return TowerShape(
        blocks=vision.num_hidden_layers,
        width=vision.hidden_size,
        mlp_width=int(vision.hidden_size * vision.mlp_ratio),
        gated_mlp=False,
        patch_size=vision.patch_size,
        temporal_patch_size=vision.video_temporal_patch_size,
        merge_size=merge,
        merger_weights=config.projector_hidden_size * (vision.hidden_size * merge**2 + text_width),
    )


def mamba_text(config: Any) -> TextShape:
    """Blocks of one kind each: attention, Mamba, an MLP or experts."""
    text = config.get_text_config()
    blocks = text.layers_block_type
    shared = text.moe_shared_expert_intermediate_size
    return TextShape(
        weights=sum(_block_weights(text, block) for block in blocks),
        attention_layers=blocks.count("full_attention"),
        attention_width=text.head_dim * text.num_attention_heads,
        mlp_width=text.num_experts_per_tok * text.moe_intermediate_size + shared,
        recurrent_layers=blocks.count("linear_attention"),
        state=(text.mamba_num_heads, text.ssm_state_size, text.mamba_head_dim),
        chunk=text.chunk_size,
    )


def _block_weights(text: Any, block: str) -> int:
    width = text.hidden_size
    if block == "full_attention":
        return width * text.head_dim * 2 * (text.num_attention_heads + text.num_key_value_heads)
    if block == "linear_attention":
        inner, shared = text.mamba_num_heads * text.mamba_head_dim, 2 * text.n_groups * text.ssm_state_size
        return width * (3 * inner + shared + text.mamba_num_heads) + text.conv_kernel * (inner + shared)
    if block == "mlp":
        return 2 * width * text.intermediate_size
    latent = text.moe_latent_size or width
    routed = 2 * latent * text.num_experts_per_tok * text.moe_intermediate_size + 2 * width * latent * (latent != width)
    return routed + width * (text.n_routed_experts + 2 * text.moe_shared_expert_intermediate_size)


SPECS = (
    FamilySpec(
        model_types=("nemotron_h_omni",),
        adapter=Nemotron,
        towers=Towers("vision_model", "language_model.model", "language_model.lm_head"),
        mergers=("multi_modal_projector", "vision_final_layernorm"),
        tower_shape=radio_tower,
        text_shape=mamba_text,
        processor=NemotronProcessor,
        video_processor=NemotronVideos,
        uint8_pixels=False,
        kernels=("mamba_ssm", "causal_conv1d"),
        untrained=(".layer_scale",),  # ones, which the published checkpoints lack and servers assume
    ),
)
