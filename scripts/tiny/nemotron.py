"""Configuration, chat template and processor of a tiny Nemotron Omni: what its original has, in small."""

from __future__ import annotations

from typing import Any

import transformers as hf

from scripts.tiny.sizes import Sizes, render_content
from scripts.tiny.tokenizer import SPECIALS, tokenizer

OWN = ("<image>", "<img>", "</img>")  # the original has no token for a video either
PATCH = 16  # pixels of its side
PATCHES = 64  # of a frame
TIMM = {
    "vit_small_patch16_224": (384, 12, 6, 1536)
}  # (width, depth, heads, MLP) of the smallest tower that vLLM builds
NORMAL: dict[str, Any] = {"norm_mean": [0.5, 0.5, 0.5], "norm_std": [0.5, 0.5, 0.5]}
TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.role == 'assistant' -%}
        {{- '<think></think>' -}}
    {%- endif -%}
    {{- render(message.content) + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
    {{- '<think>\\n' if enable_thinking is not defined or enable_thinking else '<think></think>' -}}
{%- endif -%}
"""
CONTENT = render_content("<image>\\n", "<video>\\n")


def parts(size: Sizes) -> tuple[Any, Any, Any]:
    """Tokenizer, configuration and processor."""
    words, patch = tokenizer(size.vocabulary, (*SPECIALS, *OWN)), size.patch or PATCH
    return words, _config(size, words, patch), _processor(words, patch)


def _config(size: Sizes, words: Any, patch: int) -> Any:
    """The Hugging Face configuration; what vLLM alone reads stands in it under the names of the original."""
    token = words.convert_tokens_to_ids
    radio = {
        "model_type": "radio",
        "hidden_size": size.vision_width,
        "num_hidden_layers": size.vision_depth,
        "num_attention_heads": size.vision_heads,
        "mlp_ratio": size.vision_mlp / size.vision_width,
        "patch_size": patch,
        "max_img_size": 512,
        "num_registers": 5,
        "video_temporal_patch_size": 2,
        "video_target_num_patches": PATCHES,
        "video_maintain_aspect_ratio": True,
        "initializer_range": size.init,
        "args": _radio_arguments(size),
    }
    read_by_vllm: dict[str, Any] = {
        **{"patch_size": patch, "template": "chatml", "ps_version": "v2", "image_tag_type": "internvl"},
        **{"use_thumbnail": False, **NORMAL},
    }
    return hf.NemotronH_Omni_Reasoning_V3_Config(
        text_config=_text(size, token),
        vision_config=radio,
        vision_hidden_size=size.vision_width,
        projector_hidden_size=size.text_mlp,
        image_token_id=token("<image>"),
        force_image_size=16 * patch,
        architectures=["NemotronH_Omni_Reasoning_V3"],
        dtype="float32",
        **read_by_vllm,
    )


def _radio_arguments(size: Sizes) -> dict[str, Any]:
    """Of the tower's training, by which vLLM sizes it: a summary a teacher, filled up with registers to eight."""
    sizes = size.vision_width, size.vision_depth, size.vision_heads, size.vision_mlp
    teachers = [{"name": name, "use_summary": True} for name in ("clip", "siglip", "dino")]
    return {
        "model": next((name for name, those in TIMM.items() if those == sizes), None),
        "teachers": teachers,
        "cls_token_per_teacher": True,
        "register_multiple": 8,
        "cpe_max_size": 512,
        "min_num_patches": 16,
        "max_num_patches": 256,
    }


def _text(size: Sizes, token: Any) -> dict[str, Any]:
    blocks = ("linear_attention", "moe" if size.experts else "mlp", "full_attention", "mlp")
    head = size.text_width // size.text_heads
    return size.text(
        model_type="nemotron_h",
        layers_block_type=[blocks[layer % len(blocks)] for layer in range(size.text_layers)],
        head_dim=head,
        mamba_num_heads=2 * size.text_heads,
        mamba_head_dim=head,
        n_groups=size.text_kv_heads,
        ssm_state_size=32,
        chunk_size=64,
        n_routed_experts=size.experts or 1,
        moe_intermediate_size=size.text_mlp // 4,
        moe_shared_expert_intermediate_size=size.text_mlp // 4,
        max_position_embeddings=32768,
        bos_token_id=token("<|endoftext|>"),
        eos_token_id=token("<|im_end|>"),
        pad_token_id=token("<|endoftext|>"),
        dtype="float32",
    )


def _processor(words: Any, patch: int) -> Any:
    """Frames of `PATCHES` patches, and small images."""
    image = hf.NemotronH_Omni_Reasoning_V3ImageProcessor(
        patch_size=patch, min_num_patches=16, max_num_patches=256, **NORMAL
    )
    video = hf.NemotronH_Omni_Reasoning_V3VideoProcessor(patch_size=patch, video_target_num_patches=PATCHES, **NORMAL)
    sound = hf.ParakeetFeatureExtractor()  # the processor asks for one, whether or not the model hears
    return hf.NemotronH_Omni_Reasoning_V3Processor(image, video, words, sound, chat_template=CONTENT + TEMPLATE)
