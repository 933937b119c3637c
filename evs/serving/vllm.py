"""The vLLM plugin: install this package in vLLM's environment to serve checkpoints at the positions of their training.

Entry point `evs` of the group `vllm.general_plugins`; `EVS_VLLM_PLUGIN=0` turns it off. At `--video-pruning-rate`
0 or none it changes nothing. It accepts `VLLM_VERSIONS` (docs/serving.md says how far each is tested) and refuses
others unless `EVS_VLLM_PLUGIN=any` is set.
"""

from __future__ import annotations

import os
from functools import wraps
from typing import Any

from evs.families.servers import GLM, NEMOTRON, VLLM_VERSIONS

MODELS = {
    "Qwen2_5_VLForConditionalGeneration": "evs.serving.vllm_models:Qwen25VL",
    "Qwen3VLForConditionalGeneration": "evs.serving.vllm_models:Qwen3VL",
    "Qwen3VLMoeForConditionalGeneration": "evs.serving.vllm_models:Qwen3VLMoe",
    "Qwen3_5ForConditionalGeneration": "evs.serving.vllm_qwen3_5:Qwen35",
    "Qwen3_5MoeForConditionalGeneration": "evs.serving.vllm_qwen3_5:Qwen35Moe",
}


def register() -> None:
    """Called by vLLM in each of its processes, maybe more than once. ValueError for an unsupported version."""
    mode = os.environ.get("EVS_VLLM_PLUGIN", "1")
    if mode == "0":
        return
    import vllm
    from vllm.platforms import current_platform

    if mode != "any":
        check_version(vllm.__version__)
    from evs.serving.start import check_at_start

    architectures = vllm.ModelRegistry.get_supported_archs()
    for architecture, target in MODELS.items():
        if architecture not in architectures:  # vLLM then reports it, with the architectures it has
            continue
        check_at_start(architecture)
        # By name: importing a model class here would touch CUDA before vLLM forks.
        vllm.ModelRegistry.register_model(architecture, target)
    for architecture in GLM:
        if architecture in architectures:
            check_at_start(architecture)
    if NEMOTRON in architectures:
        from evs.serving.vllm_nemotron import NemotronOmni

        check_at_start(NEMOTRON, NemotronOmni)
        vllm.ModelRegistry.register_model(NEMOTRON, "evs.serving.vllm_nemotron_videos:NemotronOmniVideos")
    if current_platform.is_cpu():
        set_pruning_flag_on_cpu()


def check_version(version: str) -> None:
    if version.split("+")[0] not in VLLM_VERSIONS:
        raise ValueError(
            f"the evs plugin does not know vLLM {version}: install {' or '.join(VLLM_VERSIONS)}, or set "
            "EVS_VLLM_PLUGIN=0 to serve without it, =any to load it and check with scripts/check_serving.py"
        )


def set_pruning_flag_on_cpu() -> None:
    """The GPU runner's load_model records that the model prunes, or takes one video at a time; the CPU runner's does
    not."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    stock = CPUModelRunner.load_model
    if hasattr(stock, "sets_pruning_flag"):
        return

    @wraps(stock)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        for flag in ("is_multimodal_pruning_enabled", "requires_sequential_video_encoding"):
            setattr(self, flag, getattr(self.get_model(), flag, False))

    load_model.sets_pruning_flag = True  # type: ignore[attr-defined]
    CPUModelRunner.load_model = load_model
