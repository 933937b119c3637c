"""The Qwen families in small: configurations, chat template and processors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers as hf

from scripts.tiny.sizes import Sizes, render_content
from scripts.tiny.tokenizer import tokenizer

CHAT_TEMPLATE = """\
{%- set last = namespace(query=-1) -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {%- set last.query = loop.index0 -%}
    {%- endif -%}
{%- endfor -%}
{%- if thinks and last.query < 0 -%}
    {{- raise_exception('No user query found in messages.') -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if default_system and loop.first and message.role != 'system' -%}
        {{- '<|im_start|>system\\n' + default_system + '<|im_end|>\\n' -}}
    {%- endif -%}
    {%- set content = render(message.content) -%}
    {%- if thinks -%}
        {%- set content = content|trim -%}
    {%- endif -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if thinks and message.role == 'assistant' -%}
        {%- set thought = '' -%}
        {%- if '</think>' in content -%}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1]|trim -%}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
        {%- endif -%}
        {%- if loop.index0 > last.query -%}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}
        {%- endif -%}
    {%- endif -%}
    {{- content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if thinks -%}
        {{- '<think>\\n' if enable_thinking is not defined or enable_thinking else '<think>\\n\\n</think>\\n\\n' -}}
    {%- endif -%}
{%- endif -%}
"""
CONTENT = render_content("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")


@dataclass(frozen=True)
class Family:
    """How a family names its classes, and where its configuration differs from its sisters'."""

    name: str  # of the classes in transformers
    processor: str
    video_processor: str
    patch: int
    default_system: str
    image_area: tuple[int, int]  # smallest and largest, in pixels
    video_area: tuple[int, int]  # of a frame for Qwen2.5-VL, of all frames together for Qwen3-VL
    text: Callable[[Sizes], dict[str, Any]]
    vision: Callable[[Sizes], dict[str, Any]]
    thinks: bool = False  # its chat template writes a thought, empty if the row has none, after the last question only

    def parts(self, size: Sizes) -> tuple[Any, Any, Any]:
        """Tokenizer, configuration and processor."""
        words = tokenizer(size.vocabulary)
        return words, _config(self, size, words), _processor(self, words, size.patch or self.patch)


def _config(spec: Family, size: Sizes, words: Any) -> Any:
    token = words.convert_tokens_to_ids
    text = size.text(
        max_position_embeddings=32768,
        tie_word_embeddings=size.tied,
        bos_token_id=token("<|endoftext|>"),
        eos_token_id=token("<|im_end|>"),
        pad_token_id=token("<|endoftext|>"),
        **spec.text(size),
    )
    return getattr(hf, f"{spec.name}Config")(
        text_config=text,
        vision_config=size.vision(spec.patch, **spec.vision(size)),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=size.tied,
        dtype="float32",
    )


def _processor(spec: Family, words: Any, patch: int) -> Any:
    shared: dict[str, Any] = {  # images and videos alike
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    image = hf.Qwen2VLImageProcessor(size=_edges(spec.image_area), **shared)
    video = getattr(hf, spec.video_processor)(size=_edges(spec.video_area), **shared)
    settings = f"{{%- set default_system = {spec.default_system!r} -%}}{{%- set thinks = {spec.thinks} -%}}"
    template = f"{settings}\n{CONTENT}{CHAT_TEMPLATE}"
    return getattr(hf, spec.processor)(image, words, video, chat_template=template)


def _edges(area: tuple[int, int]) -> dict[str, int]:
    return {"shortest_edge": area[0], "longest_edge": area[1]}  # upstream's names; the values are areas


def _text_qwen2_5(size: Sizes) -> dict[str, Any]:
    return {"rope_parameters": _rope(size, (4, 6, 6)), "rms_norm_eps": 1e-6}


def _vision_qwen2_5(size: Sizes) -> dict[str, Any]:
    step = 1 if size.full_attention else 2  # every second block, the last among them
    full = range(size.vision_depth - 1, -1, -step)
    return {"fullatt_block_indexes": sorted(full), "window_size": 112, "tokens_per_second": 2}


def _text_qwen3(size: Sizes) -> dict[str, Any]:
    head = size.text_width // size.text_heads
    return {"rope_parameters": _rope(size, (6, 5, 5)) | {"mrope_interleaved": True}, "head_dim": head}


def _text_qwen3_moe(size: Sizes) -> dict[str, Any]:
    mixture = {"num_experts": size.experts, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "norm_topk_prob": True}
    return _text_qwen3(size) | mixture | {"moe_intermediate_size": size.text_mlp // 8}


def _text_qwen3_5(size: Sizes) -> dict[str, Any]:
    """Gated DeltaNet but in every fourth layer and the last; a quarter of a head rotates, its pairs dealt in turn."""
    head, last = size.text_width // size.text_heads, size.text_layers - 1
    pairs = head // 8
    sections = [len(range(axis, pairs, 3)) for axis in range(3)]
    rope = {"rope_type": "default", "rope_theta": 1e7, "mrope_section": sections, "mrope_interleaved": True}
    full = [layer % 4 == 3 or layer == last for layer in range(size.text_layers)]
    return {
        "head_dim": head,
        "rope_parameters": rope | {"partial_rotary_factor": 0.25},
        "layer_types": ["full_attention" if is_full else "linear_attention" for is_full in full],
        "linear_num_key_heads": size.text_kv_heads,
        "linear_num_value_heads": size.text_heads,
        "linear_key_head_dim": head,
        "linear_value_head_dim": head,
        "mamba_ssm_dtype": "float32",  # of the states in a server
    }


def _text_qwen3_5_moe(size: Sizes) -> dict[str, Any]:
    mixture = {"num_experts": size.experts, "num_experts_per_tok": 2, "moe_intermediate_size": size.text_mlp // 8}
    return _text_qwen3_5(size) | mixture | {"shared_expert_intermediate_size": size.text_mlp // 8}


def _vision_qwen3(size: Sizes) -> dict[str, Any]:
    levels = range(min(size.vision_depth, size.text_layers, 3))
    return {"deepstack_visual_indexes": list(levels), "num_position_embeddings": 256}


def _rope(size: Sizes, sections: tuple[int, int, int]) -> dict[str, Any]:
    """The originals' division of rotary pairs among time, height and width, scaled to the head's width."""
    scale = size.text_width // size.text_heads // 32
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [scale * pairs for pairs in sections]}


_QWEN3: dict[str, Any] = {
    "processor": "Qwen3VLProcessor",
    "video_processor": "Qwen3VLVideoProcessor",
    "patch": 16,
    "default_system": "",
    "image_area": (64 * 64, 512 * 512),
    "video_area": (64 * 64, 32 * 256 * 256),
    "vision": _vision_qwen3,
}
_QWEN3_5 = _QWEN3 | {"vision": lambda _: {"num_position_embeddings": 256}, "thinks": True}
FAMILIES = {
    "qwen2_5_vl": Family(
        name="Qwen2_5_VL",
        processor="Qwen2_5_VLProcessor",
        video_processor="Qwen2VLVideoProcessor",
        patch=14,
        default_system="You are a helpful assistant.",
        image_area=(56 * 56, 448 * 448),
        video_area=(56 * 56, 448 * 448),
        text=_text_qwen2_5,
        vision=_vision_qwen2_5,
    ),
    "qwen3_vl": Family(name="Qwen3VL", text=_text_qwen3, **_QWEN3),
    "qwen3_vl_moe": Family(name="Qwen3VLMoe", text=_text_qwen3_moe, **_QWEN3),
    "qwen3_5": Family(name="Qwen3_5", text=_text_qwen3_5, **_QWEN3_5),
    "qwen3_5_moe": Family(name="Qwen3_5Moe", text=_text_qwen3_5_moe, **_QWEN3_5),
}
