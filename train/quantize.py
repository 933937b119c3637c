"""QLoRA (arXiv 2305.14314): linear layers of the language model in 4 bits, through bitsandbytes.

The vision tower and the merger keep their precision, because pruning compares their features as the server does. So do
embeddings and the head. `prepare_model_for_kbit_training` of peft is not called: it would cast the tower to float32.
What else it does, freezing and gradient checkpointing, is done for all LoRA.
"""

from __future__ import annotations

import re
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from evs.families import FamilySpec, spec_of
from train.checks import NO_BITSANDBYTES

NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # of a weight with its share of the scales, in two levels of blocks


def quantized_layers(model: nn.Module, spec: FamilySpec) -> dict[str, nn.Linear]:
    """The layers of a Hugging Face model that are held in 4 bits, by name: those that LoRA trains by default."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: part for name, part in linear.items() if re.fullmatch(spec.lora_targets, _unwrapped(name))}


def _unwrapped(name: str) -> str:
    return name.removesuffix(".base_layer")  # as peft names the layer within LoRA's


def nf4_config(architecture: Any, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How `from_pretrained` quantizes a model of a Hugging Face configuration that computes in `dtype`."""
    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(architecture)
    linear = {name for name, module in empty.named_modules() if isinstance(module, nn.Linear)}
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=sorted(linear - quantized_layers(empty, spec_of(architecture)).keys()),
    )


def prepare_quantized(model: Any) -> None:
    """Let a model that was loaded in 4 bits train after evaluations, and load its own `state_dict`.

    On CPUs, the first evaluation would pack the weights for a kernel without gradients, and they would stay packed.
    bitsandbytes saves the scales under keys that it cannot load; they are those of the base model, so none are saved.
    """
    for layer in quantized_layers(model, spec_of(model.config)).values():
        saving = partial(nn.Linear._save_to_state_dict, layer)
        vars(layer).update(support_avx512bf16_for_cpu=False, _save_to_state_dict=saving)


@torch.no_grad()
def round_to_nf4(model: Any) -> None:
    """Give a model in full precision the weights that it computes with in 4 bits."""
    if find_spec("bitsandbytes") is None:
        raise ValueError(NO_BITSANDBYTES)
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit  # an optional dependency

    for layer in quantized_layers(model, spec_of(model.config)).values():
        layer.weight.copy_(
            dequantize_4bit(*quantize_4bit(layer.weight.data, quant_type="nf4", compress_statistics=True))
        )
