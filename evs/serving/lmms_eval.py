"""What lmms-eval finds by the entry point group `lmms_eval.models`: two names, and where their class lies.

python -m lmms_eval --model evs_qwen2_5_vl --model_args pretrained=DIR,pruning_rate=0.75 --tasks videomme
"""

from __future__ import annotations

from typing import Any

MODELS = ("evs_qwen2_5_vl", "evs_qwen3_vl")


def models() -> list[Any]:
    """The manifests; what they name is imported when it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(name, chat_class_path="evs.serving.lmms_models.Pruned") for name in MODELS]
