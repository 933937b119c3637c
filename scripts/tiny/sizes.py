"""The sizes of a tiny checkpoint, and what the configurations and chat templates of all families share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from train.ranges import number


@dataclass
class Sizes:
    """Widths and depths. A text head is a multiple of 32 wide, as rotary sections and kernels of servers need."""

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

    def text(self, **more: Any) -> dict[str, Any]:
        """The language model's part of a Hugging Face configuration, with the family's own keys in `more`."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.text_width,
            "intermediate_size": self.text_mlp,
            "num_hidden_layers": self.text_layers,
            "num_attention_heads": self.text_heads,
            "num_key_value_heads": self.text_kv_heads,
            "initializer_range": self.init,
            **more,
        }

    def vision(self, patch: int, **more: Any) -> dict[str, Any]:
        """The same for a vision tower; `patch` is the family's own patch size."""
        return {
            "depth": self.vision_depth,
            "hidden_size": self.vision_width,
            "intermediate_size": self.vision_mlp,
            "num_heads": self.vision_heads,
            "out_hidden_size": self.text_width,
            "patch_size": self.patch or patch,
            "initializer_range": self.init,
            **more,
        }


def render_content(image: str, video: str) -> str:
    """The Jinja macro `render(content)`, which writes a medium as its marker `image` or `video`."""
    return f"""\
{{%- macro render(content) -%}}
    {{%- if content is string -%}}
        {{{{- content -}}}}
    {{%- else -%}}
        {{%- for part in content -%}}
            {{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}}
                {{{{- '{image}' -}}}}
            {{%- elif part.type == 'video' or 'video' in part or 'video_url' in part -%}}
                {{{{- '{video}' -}}}}
            {{%- elif 'text' in part -%}}
                {{{{- part.text -}}}}
            {{%- endif -%}}
        {{%- endfor -%}}
    {{%- endif -%}}
{{%- endmacro -%}}
"""
