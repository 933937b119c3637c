"""GLM-4.1V and GLM-4.5V in small: configurations, chat templates and processors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers as hf

from scripts.tiny.sizes import Sizes, render_content
from scripts.tiny.tokenizer import SPECIALS, tokenizer

ROLES = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
MARKS = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>")
PATCH = 14  # pixels of its side
TEMPLATE = """\
{{- '[gMASK]<sop>' -}}
{%- for message in messages -%}
    {{- '<|' + message.role + '|>\\n' -}}
    {%- if thinks and message.role == 'assistant' -%}
        {{- '<think></think>\\n' -}}
    {%- endif -%}
    {{- render(message.content) -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>\\n' -}}
    {%- if thinks and enable_thinking is defined and not enable_thinking -%}
        {{- '<think></think>' -}}
    {%- endif -%}
{%- endif -%}
"""
CONTENT = render_content("<|begin_of_image|><|image|><|end_of_image|>", "<|begin_of_video|><|video|><|end_of_video|>")


@dataclass(frozen=True)
class Glm:
    """How a model is named in transformers, and whether its language model is a mixture of experts."""

    name: str
    mixture: bool

    def parts(self, size: Sizes) -> tuple[Any, Any, Any]:
        """Tokenizer, configuration and processor."""
        words = tokenizer(size.vocabulary, (*SPECIALS, *ROLES, *MARKS))
        words.eos_token = "<|user|>"
        return words, self._config(size, words), self._processor(words, size.patch or PATCH)

    def _config(self, size: Sizes, words: Any) -> Any:
        token, head = words.convert_tokens_to_ids, size.text_width // size.text_heads
        rotary = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
        text = size.text(
            rope_parameters=rotary | {"mrope_section": [head // 16, head // 8 - head // 16, head // 8]},
            eos_token_id=token("<|user|>"),
            pad_token_id=token("<|endoftext|>"),
        )
        if self.mixture:
            experts = {"n_routed_experts": size.experts, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
            text |= experts | {"moe_intermediate_size": size.text_mlp // 8, "head_dim": head}
        return getattr(hf, f"{self.name}Config")(
            text_config=text,
            vision_config=size.vision(PATCH),
            image_token_id=token("<|image|>"),
            video_token_id=token("<|video|>"),
            image_start_token_id=token("<|begin_of_image|>"),
            image_end_token_id=token("<|end_of_image|>"),
            video_start_token_id=token("<|begin_of_video|>"),
            video_end_token_id=token("<|end_of_video|>"),
            tie_word_embeddings=size.tied,
            dtype="float32",
        )

    def _processor(self, words: Any, patch: int) -> Any:
        edges = {"shortest_edge": 56 * 56, "longest_edge": 512 * 512}  # areas, of a video's frames together
        shared: dict[str, Any] = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2, "size": edges}
        image, video = hf.Glm4vImageProcessor(**shared), hf.Glm4vVideoProcessor(**shared)
        template = f"{{%- set thinks = {self.mixture} -%}}\n{CONTENT}{TEMPLATE}"
        return hf.Glm4vProcessor(image, words, video, chat_template=template)


FAMILIES = {"glm4v": Glm("Glm4v", mixture=False), "glm4v_moe": Glm("Glm4vMoe", mixture=True)}
