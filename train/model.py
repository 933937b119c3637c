"""The Hugging Face model and processor of a run: frozen, with LoRA, gradient checkpointing and compilation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from data.encoding.encoder import Encoder
from data.encoding.labels import ChatMarkers
from data.media.frames import FramePolicy
from data.sample_limits import LIMITS, SampleLimits
from evs.families import spec_of
from evs.sequence_parallel import exchanges, exchanging
from train.config import Config, LoraConfig, ModelConfig
from train.faults.first_line import first_line
from train.optim import freeze
from train.quantize import nf4_config, prepare_quantized
from train.seeding import seed_draws


def encoder_of(
    model: str,
    policy: FramePolicy,
    revision: str | None = None,
    *,
    max_tokens: int | None = None,
    limits: SampleLimits = LIMITS,
    chat_template: str | None = None,
) -> Encoder:
    """An encoder with a checkpoint's own processor. Raises ValueError for a model family that is not supported.

    `model` is a folder or a Hub id, `chat_template` replaces the checkpoint's own.
    """
    spec = spec_of(load_pretrained(AutoConfig, model, revision))
    processor = load_pretrained(AutoProcessor, model, revision)
    if chat_template is not None:
        processor.chat_template = chat_template
    return Encoder(spec.processor(processor), policy, max_tokens, limits, ChatMarkers(**spec.chat))


def build_model(config: ModelConfig, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """The Hugging Face model with its weights, prepared for training; `seed` determines LoRA's initial weights."""
    check_attention(config.attention)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": config.attention}
    if config.lora.quantize is not None:
        options["quantization_config"] = nf4_config(load_pretrained(AutoConfig, config.path, config.revision), dtype)
    model = load_pretrained(AutoModelForImageTextToText, config.path, config.revision, **options)
    _own_storage(model)
    if config.lora.quantize is not None:
        prepare_quantized(model)
    seed_draws("initial weights", seed)
    return fit_for_training(model, config)


def _own_storage(model: nn.Module) -> None:
    """Copy parameters that are slices of a larger tensor of the checkpoint, which cannot be saved as they are."""
    for parameter in model.parameters():
        if parameter.untyped_storage().nbytes() > parameter.nbytes:
            parameter.data = parameter.data.clone()


def fit_for_training(model: Any, config: ModelConfig) -> nn.Module:
    """`model`, changed in place: frozen towers, gradient checkpointing, compiled layers and LoRA as configured."""
    spec = spec_of(model.config)
    towers = spec.towers.of(model)._asdict()
    freeze(model, spec, config.freeze)
    for name in config.recomputed:
        tower: Any = towers[name]  # transformers 5.24 renames it, and warns of the old name
        enable = getattr(tower, "activation_checkpointing_enable", tower.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    if config.compile:
        for layer in towers["language"].layers:  # one graph for all layers and lengths
            layer.compile(dynamic=True)
    fitted = _with_lora(model, config.lora, spec.lora_targets) if config.lora.r is not None else model
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            # transformers and peft let embeddings require gradients, which only reentrant checkpointing needs. A frozen
            # tower would be recomputed and would have a backward pass for nothing.
            part.disable_input_require_grads()
    return fitted


def _with_lora(model: nn.Module, lora: LoraConfig, targets: str) -> nn.Module:
    assert lora.r is not None
    adapter = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        target_modules=lora.targets or targets,
    )
    return get_peft_model(model, adapter)


def build_empty_model(config: ModelConfig, dtype: torch.dtype) -> nn.Module:
    """The model to be trained on the meta device, without weights. Call it before an engine that shards it (ZeRO 3).

    Raise ValueError for an attention implementation that this machine cannot run.
    """
    check_attention(config.attention)
    architecture = load_pretrained(AutoConfig, config.path, config.revision)
    unset_hf_deepspeed_config()  # of an earlier job of a sweep; transformers would gather parameters
    with torch.device("meta"):
        try:
            model = AutoModelForImageTextToText.from_config(
                architecture, dtype=dtype, attn_implementation=config.attention
            )
        except (ImportError, ValueError) as error:  # not installed, or unknown to transformers
            raise ValueError(f"model.attention={config.attention} cannot be used ({first_line(error)})") from error
        return fit_for_training(model, config)


def check_attention(name: str) -> None:
    """Raise ValueError for an implementation that this machine cannot run."""
    if name.startswith("flash_attention") and not torch.cuda.is_available():
        raise ValueError(f"model.attention={name} needs a CUDA GPU and there is none: use model.attention=sdpa")


def exchange_heads(model: Any) -> None:
    """Let the layers of the language model exchange heads, see evs.sequence_parallel.

    transformers may have loaded another attention implementation than the configured one, such as a kernel of the Hub.
    """
    attention = base_model(model).config.get_text_config()._attn_implementation
    core = ALL_ATTENTION_FUNCTIONS[attention]
    if not exchanges(core):
        AttentionInterface.register(attention, exchanging(core))


def load_pretrained(auto: Any, path: str, revision: str | None = None, **kwargs: Any) -> Any:
    """`auto.from_pretrained` without custom code. Raise a one-line ValueError if it cannot be loaded."""
    try:
        return auto.from_pretrained(path, revision=revision, trust_remote_code=False, **kwargs)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # from several libraries, for files with any content
        reason = _why_not_loaded(error, Path(path))
        raise ValueError(f"model.path={path} cannot be loaded ({reason}): give a folder or a Hub id") from error


def _why_not_loaded(error: Exception, folder: Path) -> str:
    if "trust_remote_code" in str(error):
        return "it needs custom code, which is never run"
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as damage:
            return f"{path} is truncated or corrupt, {damage}; copy or download it again"
    return first_line(error)


def weight_dtype(config: Config) -> torch.dtype:
    """bf16 if the optimizer holds float32 copies (ZeRO) or the weights are frozen (LoRA), otherwise float32."""
    low_precision = config.engine.name.startswith("zero") or config.model.lora.r is not None
    return torch.bfloat16 if config.engine.precision == "bf16" and low_precision else torch.float32


def base_model(model: Any) -> Any:
    """The Hugging Face model without LoRA's wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
