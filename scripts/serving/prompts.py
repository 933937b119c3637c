"""A prompt of check_serving: a batch for our side, a request with its arrays for the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.types import Batch, Clip


@dataclass(frozen=True)
class Prompt:
    name: str
    batch: Batch
    request: dict[str, Any]  # as scripts/serving/worker.py reads it
    media: dict[str, np.ndarray] = field(default_factory=dict)  # that the request refers to
    clip: Clip | None = None  # of a file that the server reads itself: the clip as read in training


def without_headers(processor: Any) -> str:
    """A chat template that writes a prompt without headers, with media marked as in the checkpoint's own template."""
    marks = ("<|vision_start|>", "<|vision_end|>") if "<|vision_start|>" in processor.chat_template else ("", "\\n")
    image, video = (marks[0] + token + marks[1] for token in (processor.image_token, processor.video_token))
    return (
        "{%- for part in messages[0].content -%}{%- if part.type == 'text' -%}{{- part.text -}}"
        f"{{%- elif part.type == 'video' -%}}{{{{- '{video}' -}}}}{{%- else -%}}{{{{- '{image}' -}}}}"
        "{%- endif -%}{%- endfor -%}"
    )
