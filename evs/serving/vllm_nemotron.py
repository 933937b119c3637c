"""What vLLM needs to know of Nemotron Omni as transformers writes it; then its own class serves the family.

There are no rotary positions, so none are to be kept. vLLM's hooks know the architecture by older names alone.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.models.config import NemotronHNanoVLV2Config
from vllm.platforms import current_platform
from vllm.transformers_utils.configs.radio import VIT_TIMM_DIM_BY_NAME


class NemotronOmni(NemotronHNanoVLV2Config):
    """vLLM's hook of this family, which keeps Mamba's states in float32, under the architecture's name of today."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        config = model_config.hf_config
        config.vit_hidden_size = config.vision_config.hidden_size  # by its former name
        config.text_config.dtype = model_config.dtype  # the tower takes this one

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        super().verify_and_update_config(vllm_config)
        refuse(vllm_config.model_config)


def refuse(model_config: Any) -> None:
    """ValueError for what vLLM's class starts with and fails on later."""
    if model_config.dtype != torch.bfloat16:
        raise ValueError(
            f"--dtype {str(model_config.dtype).removeprefix('torch.')}: vLLM casts what Nemotron's tower gives to "
            "bfloat16; use --dtype bfloat16"
        )
    vision, text = model_config.hf_config.vision_config, model_config.hf_config.text_config
    wide = round(vision.hidden_size * vision.mlp_ratio)
    sizes = vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads, wide
    if VIT_TIMM_DIM_BY_NAME.get(vision.args.get("model")) != sizes:
        raise ValueError(
            f"vision_config: a tower of (width, depth, heads, MLP) {sizes}, and vLLM builds only those of timm's four "
            "names: make a tiny checkpoint with sizes.vision_width=384 sizes.vision_depth=12 sizes.vision_heads=6 "
            "sizes.vision_mlp=1536"
        )
    if current_platform.is_cpu() and "moe" in text.layers_block_type:
        raise ValueError(
            "layers_block_type: on a CPU vLLM has no experts without a gate, as Nemotron's are: serve it on a GPU, or "
            "make a tiny checkpoint with sizes.experts=0"
        )
