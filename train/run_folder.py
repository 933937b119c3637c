"""Reads the files of a run folder as plain data, because the folder may come from somebody else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from train.config import Config
from train.removed import without_removed


def read_config(run_dir: Path) -> Config:
    """The configuration that a run has saved.

    Raise a one-line ValueError if the file is not one, or holds an interpolation, which would be resolved here.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ValueError(f"run={run_dir} holds no config.yaml: give the run_dir of a training run")
    try:
        saved = OmegaConf.to_container(without_removed(OmegaConf.load(path)), resolve=False)
        for key, text in _texts(saved):
            if "${" in text:
                raise ValueError(f"{key} holds the interpolation {text!r:.60}; write its value")
        return cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), saved)))
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: {reason}; give the run_dir of a run of this version") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raise a one-line ValueError for other content."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); write it again or remove it") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds {type(value).__name__} instead of an object; write it again or remove it")
    return value


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of all strings in nested mappings and lists, including the keys of mappings."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield f"{key}{name}", str(name)
            yield from _texts(item, f"{key}{name}.")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{key}{index}.")
    elif isinstance(value, str):
        yield key.rstrip("."), value
