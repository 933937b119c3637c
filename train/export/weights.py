"""A run's trained weights in a stock Hugging Face folder, under the base model's keys and in its dtypes.

Weights are streamed: in addition to the model, only one tensor is in memory at a time.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from transformers import AutoModelForImageTextToText
from transformers.dynamic_module_utils import get_relative_import_files

from train.config import ModelConfig
from train.experts import publish_experts
from train.model import load_pretrained
from train.quantize import round_to_nf4
from train.run_folder import read_object

SHARD = "5GB"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LORA = ("r", "lora_alpha", "lora_dropout", "use_dora", "target_modules")  # as train/model.py sets
CONFIGURATIONS = (
    *("config.json", "tokenizer_config.json", "processor_config.json"),
    *("preprocessor_config.json", "video_preprocessor_config.json"),
)
COMPANIONS = (  # files to copy together with a model's weights
    *CONFIGURATIONS,
    *("generation_config.json", "chat_template.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model"),
    *("special_tokens_map.json", "added_tokens.json"),
    *("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt"),
)


def write_weights(config: ModelConfig, folder: Path, out: Path) -> None:
    """Write the base model with the weights of the checkpoint `folder`; LoRA is merged, into what it was trained on."""
    # Loaded by the library, which thus knows keys and dtypes; the files are memory-mapped, not copied.
    model = load_pretrained(AutoModelForImageTextToText, config.path, revision=config.revision, dtype="auto")
    if config.lora.quantize is not None:
        round_to_nf4(model)
    if (folder / ADAPTER).is_file():
        model = PeftModel.from_pretrained(model, str(folder), config=lora_config(folder)).merge_and_unload()
    else:
        fill(model, folder)
    model.save_pretrained(out, max_shard_size=SHARD)
    publish_experts(out, model.config)


def lora_config(folder: Path) -> LoraConfig:
    """The adapter settings that training writes. Others are ignored, since peft imports modules that they may name."""
    settings = read_object(folder / ADAPTER)
    return LoraConfig(**{name: settings[name] for name in LORA if name in settings})


def write_adapter(folder: Path, out: Path, base: str) -> None:
    """Write the LoRA adapter of a checkpoint for the model called `base`. ValueError without LoRA."""
    if not (folder / ADAPTER).is_file():
        raise ValueError("adapter=true: this run trained without LoRA (model.lora.r): remove adapter=true")
    shutil.copyfile(folder / ADAPTER_WEIGHTS, out / ADAPTER_WEIGHTS)
    settings = read_object(folder / ADAPTER) | {"base_model_name_or_path": base}
    (out / ADAPTER).write_text(json.dumps(settings, indent=2) + "\n")


@torch.no_grad()
def fill(model: Any, folder: Path) -> None:
    """Overwrite every weight of the model from a folder of safetensors."""
    own = model.state_dict()
    missing = set(own) - set(model.all_tied_weights_keys)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        for name in names:
            assert name in own, f"{path} holds {name}, which the model does not have"
            with safe_open(path, framework="pt") as file:  # reopened, to release the pages that were read
                own[name].copy_(file.get_tensor(name))
        missing -= set(names)
    assert not missing, f"{folder} lacks {sorted(missing)[0]}"


def copy_companions(base: Path, out: Path) -> None:
    """Copy the base's configuration, tokenizer, processor, chat template, licence and the code that its configuration
    names. Other files in its folder may be private and are not copied."""
    for name in (*COMPANIONS, *code_files(base)):
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)


def code_files(base: Path) -> list[str]:
    """Names of the modules that the configurations of a model name under `auto_map`, and of those that they import."""
    maps = [read_object(base / name).get("auto_map") for name in CONFIGURATIONS if (base / name).is_file()]
    classes = [value for auto_map in maps if isinstance(auto_map, dict) for value in auto_map.values()]
    listed = [name for value in classes for name in (value if isinstance(value, list) else [value])]
    paths = {base / f"{name.rpartition('.')[0]}.py" for name in listed if isinstance(name, str) and "/" not in name}
    modules = [path for path in sorted(paths) if path.is_file()]
    imported = [Path(path) for module in modules for path in get_relative_import_files(module)]
    return sorted({path.name for path in (*modules, *imported)})


def open_files(out: Path) -> None:
    """Give all files the default mode; safetensors creates files that only their owner can read."""
    os.umask(umask := os.umask(0))
    for path in out.iterdir():
        if path.is_file():
            path.chmod(0o666 & ~umask)


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
