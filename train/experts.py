"""The layout of mixture-of-experts weights in published checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from evs.families import spec_of


def publish_experts(folder: Path, config: Any) -> None:
    """Transpose the experts of a saved checkpoint to the layout in which their family is published.

    transformers transposes them when it reads a checkpoint but not when it writes one, and servers read only the
    published layout. `config` is the Hugging Face configuration. Shards without experts are not read. Raise ValueError
    for square experts, whose layout cannot be determined.
    """
    if not (transposed := spec_of(config).transposed_experts):
        return
    width = config.get_text_config().hidden_size
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            sides = {name: side for name in list(file.keys()) for end, side in transposed.items() if name.endswith(end)}
        if not sides:
            continue
        weights = load_file(path)
        if square := [name for name in sides if weights[name].shape[1] == weights[name].shape[2]]:
            raise ValueError(
                f"{path}: {square[0]} is square, so its layout cannot be determined: give experts another width"
            )
        turned = {n: weights[n].transpose(1, 2).contiguous() for n, s in sides.items() if weights[n].shape[s] != width}
        save_file(weights | turned, path, metadata={"format": "pt"})
