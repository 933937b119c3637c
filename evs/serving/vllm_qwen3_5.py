"""vLLM's Qwen3.5 with pruning, which the stock classes lack. Positions are those of Qwen3-VL.

In a module of its own, because other versions of vLLM may not have the family.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.qwen3_5 import Qwen3_5ForConditionalGeneration, Qwen3_5MoeForConditionalGeneration

from evs.serving.vllm_models import FrameByFrame
from evs.serving.vllm_requests import checked


class Prunes(FrameByFrame):
    """Scores the merger output; there is no deepstack."""

    def __init__(self, *, vllm_config: Any, prefix: str = "model") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._init_video_pruning(self.multimodal_config)  # type: ignore[attr-defined]


@checked
class Qwen35(Prunes, Qwen3_5ForConditionalGeneration): ...


@checked
class Qwen35Moe(Prunes, Qwen3_5MoeForConditionalGeneration): ...
