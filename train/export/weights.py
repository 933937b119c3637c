"""A run's trained weights in a stock Hugging Face folder, under the base model's keys and in its dtypes.

Weights are streamed: beside the model itself, one tensor is held at a time.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from evs.policy import FILE
from train.config import ModelConfig
from train.experts import publish_experts
from train.model import load_pretrained

SHARD = "5GB"
ADAPTER = "adapter_config.json"


def write_weights(config: ModelConfig, folder: Path, out: Path) -> None:
    """The base model with the weights in `folder`, a checkpoint's, in place of its own; LoRA is merged."""
    # Read by the library, so that it remembers keys and dtype: its files are mapped, not copied.
    model = load_pretrained(AutoModelForImageTextToText, config.path, revision=config.revision, dtype="auto")
    if (folder / ADAPTER).is_file():
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    else:
        fill(model, folder)
    model.save_pretrained(out, max_shard_size=SHARD)
    publish_experts(out, model.config)


def write_adapter(folder: Path, out: Path, base: str | None) -> None:
    """The LoRA adapter of a checkpoint, to be put on `base` where that is known. ValueError without LoRA."""
    if not (folder / ADAPTER).is_file():
        raise ValueError("adapter=true: this run trained without LoRA (model.lora.r): leave it out")
    for path in sorted(folder.glob("adapter_*")):
        shutil.copyfile(path, out / path.name)
    if base is not None:
        settings = json.loads((out / ADAPTER).read_text())
        (out / ADAPTER).write_text(json.dumps(settings | {"base_model_name_or_path": base}, indent=2) + "\n")


@torch.no_grad()
def fill(model: Any, folder: Path) -> None:
    """Overwrite every weight of the model from a folder of safetensors."""
    own = model.state_dict()
    left = set(own) - set(model.all_tied_weights_keys)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        for name in names:
            assert name in own, f"{path} holds {name}, which the model has not"
            with safe_open(path, framework="pt") as file:  # anew, which lets go of the pages read before
                own[name].copy_(file.get_tensor(name))
        left -= set(names)
    assert not left, f"{folder} lacks {sorted(left)[0]}"


def copy_companions(base: Path, out: Path) -> None:
    """Everything of the base that is no weight and no card, as it stands: configuration, processor, chat template."""
    for path in sorted(base.iterdir()):
        weights = ".safetensors" in path.name or path.suffix in {".bin", ".pth", ".pt"}
        if path.is_file() and not weights and path.name not in {FILE, "README.md", ".gitattributes", "curve.png"}:
            shutil.copyfile(path, out / path.name)


def check_shapes(base: Path, out: Path) -> None:
    """Raise unless the exported weights have the base's keys and shapes."""
    theirs, ours = weight_shapes(base), weight_shapes(out)
    if theirs and theirs != ours:
        name = min(key for key, _ in theirs.items() ^ ours.items())
        raise ValueError(f"{out}: keys or shapes differ from the base model's, e.g. {name}: update transformers")


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    return shapes
