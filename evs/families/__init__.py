"""One folder per model family, and the table that finds its FamilySpec."""

from __future__ import annotations

from typing import Any

from evs.families import glm, nemotron, qwen
from evs.families.base import Adapter, MediaBatch
from evs.families.spec import FamilySpec, Towers

FAMILIES = {name: spec for family in (qwen, nemotron, glm) for spec in family.SPECS for name in spec.model_types}

__all__ = ["FAMILIES", "Adapter", "FamilySpec", "MediaBatch", "adapter_for", "check_scheme", "spec_of", "towers_of"]


def spec_of(config: Any) -> FamilySpec:
    """The spec of a Hugging Face configuration's family. Raises ValueError for a family that is not supported."""
    if config.model_type not in FAMILIES:
        raise ValueError(f"model family {config.model_type!r} is not supported: use one of {', '.join(FAMILIES)}")
    return FAMILIES[config.model_type]


def adapter_for(model: Any, scheme: str = "preserve") -> Adapter:
    """The adapter of a Hugging Face model; its vision tower is sped up in place, its weights and keys stay.

    Raises ValueError for a family that is not supported, and for a position scheme that the family does not have.
    """
    spec = spec_of(model.config)
    check_scheme(model.config, scheme)
    return spec.adapter(model, spec, scheme)


def check_scheme(config: Any, scheme: str) -> None:
    """Raise ValueError for a position scheme that the family does not have."""
    if scheme not in (schemes := spec_of(config).schemes):
        raise ValueError(f"scheme {scheme!r} is unknown for {config.model_type}: use {' or '.join(schemes)}")


def towers_of(model: Any) -> Towers:
    """The modules of a Hugging Face model by what they do."""
    return spec_of(model.config).towers.of(model)
