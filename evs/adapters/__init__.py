"""One file per model family, and the table that finds it."""

from __future__ import annotations

from typing import Any

from evs.adapters.base import Adapter, MediaBatch
from evs.adapters.qwen2_5_vl import Qwen25VL
from evs.adapters.qwen3_vl import Qwen3VL
from evs.adapters.vision import speed_up

FAMILIES = {
    "qwen2_5_vl": Qwen25VL,
    "qwen3_vl": Qwen3VL,
    "qwen3_vl_moe": Qwen3VL,
    "qwen3_5": Qwen3VL,
    "qwen3_5_moe": Qwen3VL,
}

__all__ = ["FAMILIES", "Adapter", "MediaBatch", "adapter_for", "check_family"]


def check_family(model_type: str) -> str:
    """The family itself. Raises ValueError for one without an adapter."""
    if model_type not in FAMILIES:
        raise ValueError(f"model family {model_type!r} is not supported: use one of {', '.join(FAMILIES)}")
    return model_type


def adapter_for(model: Any, scheme: str = "preserve") -> Adapter:
    """The adapter of a Hugging Face model; its vision tower is sped up in place, its weights and keys stay.

    Raises ValueError for a family without an adapter, and for a position scheme that the family does not have.
    """
    adapter = FAMILIES[check_family(model.config.model_type)](model, scheme)
    speed_up(model.model.visual)
    return adapter
