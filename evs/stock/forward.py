"""`forward` of a stock transformers model with pruning enabled: the family's output for the processor's inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, get_args

import torch
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from evs.families import Adapter, adapter_for, towers_of
from evs.losses.fused_head import fuse_loss
from evs.losses.objective import Losses, mean_objective
from evs.pipeline import EncodedBatch, PrunedInputs
from evs.stock.padded_logits import Survivors, padded_logits
from evs.stock.pixel_levels import Normal, normal_of
from evs.stock.prompts import PaddedRows, unpad
from evs.stock.pruning_state import SETTING, Pruning, generation_lock, setting_of

UNUSED = ("inputs_embeds", "mm_encoder_outputs", "input_features", "shift_labels")
NOT_RETURNED = ("output_hidden_states", "output_attentions", "output_router_logits")


@can_return_tuple
def pruned_forward(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The family's output for the arguments of its stock forward, with videos pruned."""
    setting = setting_of(model)
    inputs = arguments(type(model), "forward", args, kwargs)
    check_inputs(model, inputs)
    out = _survivors(model, setting, inputs)
    loss, logits = _loss_and_logits(model, out, inputs, setting.return_logits)
    kind: Any = type(model)
    return _output_class(kind)(loss=loss, logits=logits)


@can_return_tuple
def pruned_backbone(model: Any, *args: Any, **kwargs: Any) -> Any:
    """What the model without its head returns: hidden states in the caller's rows.

    Trainers that bring a fused head of their own (TRL, Liger) call the model within instead of the model.
    """
    backbone, kind = model.base_model, model.base_model.__class__
    with generation_lock():
        if SETTING not in vars(model):
            return kind.forward(backbone, *args, **kwargs)
        inputs = arguments(kind, "forward", args, kwargs)
        check_inputs(model, inputs)
        hidden_BLD = _survivors(model, vars(model)[SETTING], inputs).padded_hidden()
        return _output_class(kind)(last_hidden_state=hidden_BLD)


pruned_backbone.evs_pruning = True  # type: ignore[attr-defined]


def _survivors(model: Any, setting: Pruning, inputs: Mapping[str, Any]) -> Survivors:
    """The hidden states of the tokens that are kept."""
    rows, pruned = prune_inputs(model, setting, inputs, training=model.training)
    index_S = rows.index_N.to(pruned.keep_N.device)[pruned.keep_N]
    hidden_SD = adapter_of(model, setting).decode(pruned.x).to(index_S.device)  # a device_map may split the layers
    return Survivors(hidden_SD, pruned.x, index_S, rows.shape)


def adapter_of(model: Any, setting: Pruning) -> Adapter:
    if setting.adapter is None:
        setting.adapter = adapter_for(model, setting.scheme)
    return setting.adapter


def prune_inputs(
    model: Any, setting: Pruning, inputs: Mapping[str, Any], training: bool
) -> tuple[PaddedRows, PrunedInputs]:
    """The rows without padding, and pruned. In training, a distribution may adapt its rate to each video's length."""
    adapter, rate = adapter_of(model, setting), setting.rate(training)
    rows = unpad(adapter, inputs, _normal(setting, inputs, rate))
    lengths = [grid.T for grid in adapter.grids(rows.prompts)]
    rates_V = [setting.rates.rate_for(rate, length) if training else rate for length in lengths]
    pruned = EncodedBatch(adapter, rows.prompts, setting.method).prune(rates_V, pruned=any(rates_V or [rate]))
    state = setting.state
    state.rates, state.tokens_before, state.tokens_after = tuple(rates_V), len(rows.index_N), len(pruned.x.segment_N)
    return rows, pruned


def _normal(setting: Pruning, inputs: Mapping[str, Any], rate: float) -> Normal | None:
    """Mean and standard deviation of the pixels, where they are read."""
    pixels = inputs.get("pixel_values_videos")
    for name in ("pixel_values_videos", "pixel_values"):
        if (given := inputs.get(name)) is not None and not given.is_floating_point() and setting.normal is None:
            raise ValueError(f"{name} are {given.dtype}, which are normalised here: give enable_pruning the processor")
    if pixels is None or not pixels.is_floating_point() or setting.method.needs != "pixels" or not rate:
        return setting.normal
    return normal_of(pixels) if setting.normal is None else normal_of(pixels, [setting.normal])


def _loss_and_logits(
    model: Any, out: Survivors, inputs: Mapping[str, Any], return_logits: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The library's loss, if there are labels, and logits in the caller's rows, if they are returned."""
    head, items = towers_of(model).head, inputs.get("num_items_in_batch")
    loss = partial(model.loss_function, vocab_size=model.config.get_text_config().vocab_size, num_items_in_batch=items)
    if inputs.get("labels") is None:
        return None, padded_logits(head, out, _columns(inputs.get("logits_to_keep", 0)))
    if return_logits or model.loss_function is not ForCausalLMLoss:
        logits_BLV = padded_logits(head, out)
        return loss(logits=logits_BLV, labels=out.labels()), logits_BLV
    targets_T = out.targets()
    hidden_TD, labels_T = out.hidden_SD[targets_T - 1], out.x.labels_N[targets_T]
    if not fuse_loss(head):
        return loss(logits=head(hidden_TD)[None], labels=None, shift_labels=labels_T[None]), None
    losses: Losses = head(hidden_TD[None], labels_T, mean_objective(1))
    return losses.total / torch.as_tensor(len(labels_T) if items is None else items, device=losses.total.device), None


def _columns(logits_to_keep: int | Tensor) -> slice | Tensor:
    return slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep


def check_inputs(model: Any, inputs: Mapping[str, Any]) -> None:
    """Raise ValueError for arguments of the stock forward that pruning does not support."""
    for name in UNUSED:
        if inputs.get(name) is not None:
            raise ValueError(f"{name} cannot be pruned: pass what the processor returns, or call disable_pruning")
    if inputs.get("input_ids") is None:
        raise ValueError("input_ids are missing: pass what the processor returns")
    cache = inputs.get("cache", inputs.get("past_key_values"))
    if cache is not None or inputs.get("use_cache"):
        raise ValueError(
            "a pruned forward neither reads nor returns past_key_values, and videos cannot be added to a pruned chat: "
            "use model.generate on the whole conversation, or call disable_pruning"
        )
    for name in NOT_RETURNED:
        if inputs.get(name) or getattr(model.config.get_text_config(), name, False):
            raise ValueError(f"{name}=True: a pruned forward returns loss and logits only; set it to False")
    keep = inputs.get("logits_to_keep", 0)
    if inputs.get("labels") is not None and (isinstance(keep, Tensor) or keep):
        raise ValueError("logits_to_keep leaves out logits that labels are compared with: pass only one of them")


def arguments(kind: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a stock function by name."""
    positional = list(_parameters(kind, name))[1 : len(args) + 1]
    return dict(zip(positional, args)) | kwargs


@lru_cache
def _parameters(kind: Any, name: str) -> tuple[str, ...]:
    return tuple(inspect.signature(getattr(kind, name)).parameters)


@lru_cache
def _output_class(kind: Any) -> Any:
    """The output class of a family, from the annotation of its forward."""
    annotation = inspect.signature(kind.forward, eval_str=True).return_annotation
    options = [each for each in (annotation, *get_args(annotation)) if inspect.isclass(each)]
    return next(each for each in options if issubclass(each, ModelOutput))
