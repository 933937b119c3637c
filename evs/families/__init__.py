"""One file per model family, and the table that finds it."""

from __future__ import annotations

from typing import Any

from evs.families.base import Adapter, MediaBatch, Towers
from evs.families.nemotron.adapter import Nemotron
from evs.families.qwen.qwen2_5_vl import Qwen25VL
from evs.families.qwen.qwen3_vl import Qwen3VL

FAMILIES: dict[str, Any] = {
    "qwen2_5_vl": Qwen25VL,
    "qwen3_vl": Qwen3VL,
    "qwen3_vl_moe": Qwen3VL,
    "qwen3_5": Qwen3VL,
    "qwen3_5_moe": Qwen3VL,
    "nemotron_h_omni": Nemotron,
}

__all__ = ["FAMILIES", "Adapter", "MediaBatch", "adapter_for", "check_family", "towers_of"]


def check_family(model_type: str) -> str:
    """The family itself. Raises ValueError for one without an adapter."""
    if model_type not in FAMILIES:
        raise ValueError(f"model family {model_type!r} is not supported: use one of {', '.join(FAMILIES)}")
    return model_type


def adapter_for(model: Any, scheme: str = "preserve") -> Adapter:
    """The adapter of a Hugging Face model; its vision tower is sped up in place, its weights and keys stay.

    Raises ValueError for a family without an adapter, and for a position scheme that the family does not have.
    """
    return FAMILIES[check_family(model.config.model_type)](model, scheme)


def towers_of(model: Any) -> Towers:
    """The modules of a Hugging Face model by what they do, wherever its family keeps them."""
    return Towers(*(model.get_submodule(path) for path in FAMILIES[check_family(model.config.model_type)].towers))
