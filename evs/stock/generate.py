"""`model.generate` for a model with pruning enabled: what the stock one would return for the same arguments."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import LogitsProcessorList, StoppingCriteriaList

from evs.families import Adapter
from evs.generate import generate_pruned, next_positions
from evs.pipeline import PrunedInputs
from evs.stock.forward import adapter_of, arguments, check_inputs, prune_inputs
from evs.stock.prompts import PaddedRows
from evs.stock.pruning_state import setting_of, suspended

# Arguments that say what the prompt is: generate_pruned gives their place to the survivors.
PROMPT = ("input_ids", "attention_mask", "position_ids", "mm_token_type_ids", "labels", "second_per_grid_ts")
MEDIA = ("pixel_values_videos", "video_grid_thw", "pixel_values", "image_grid_thw", "image_grid_hw")
CACHES = ("past_key_values", "cache")
# Attributes by which the library's processors and criteria know how long a sequence or its prompt is.
LENGTHS = (
    *("max_length", "min_length", "prompt_length_to_skip", "prompt_ignore_length", "begin_index"),
    "regulation_start",
)


@torch.no_grad()
def pruned_generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """What the stock `generate` returns for the same arguments, with videos pruned at the rate of evaluation."""
    setting = setting_of(model)
    if isinstance(model, FSDPModule):  # it gathers weights within the forward of the whole model only
        raise ValueError(
            "a model that FSDP2 shards cannot generate with pruning: load the saved checkpoint, and use it"
        )
    inputs = arguments(type(model), "generate", args, kwargs)
    if (ids := inputs.pop("inputs", None)) is not None:
        inputs["input_ids"] = ids
    prompt, options = _prompt_of(inputs)
    check_inputs(model, prompt)
    rows, pruned = prune_inputs(model, setting, prompt, training=False)
    assistant = options.get("assistant_model")  # it proposes tokens from the survivors' ids
    with suspended(model, *(() if assistant is None else (assistant,))):
        return _generate(adapter_of(model, setting), rows, pruned, prompt["input_ids"], options)


def _generate(
    adapter: Adapter, rows: PaddedRows, pruned: PrunedInputs, input_ids_BL: Tensor, options: Mapping[str, Any]
) -> Any:
    """The library's output for pruned prompts, whose sequences begin with the full rows `input_ids_BL`.

    `options` are the arguments of `generate` without those of the prompt. Their lengths count the full rows. Raises
    ValueError if a row holds several samples.
    """
    x, batch = pruned.x, len(input_ids_BL)
    lengths_B = x.segment_N.bincount()
    if len(lengths_B) != batch:
        raise ValueError(f"{batch} rows hold {len(lengths_B)} samples: generate from one prompt per row")
    dropped = input_ids_BL.shape[1] - int(lengths_B.max())
    options = _shown(_shortened(adapter.model, options, dropped), input_ids_BL, dropped)
    if options.get("streamer") is not None:
        options["streamer"] = _PromptStreamer(options["streamer"], input_ids_BL.cpu())
    ids_S = rows.prompts.input_ids_N.to(pruned.keep_N.device)[pruned.keep_N]
    next_B = next_positions(adapter.scheme, pruned.embedded, x)
    out = generate_pruned(adapter.model, x, next_B, ids_S, **options)
    if isinstance(out, Tensor):
        return _full(out, input_ids_BL, dropped)
    out["sequences"] = _full(out.sequences, input_ids_BL, dropped)
    return out


def _prompt_of(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(The arguments of `generate` that are the prompt, the others). Raises ValueError for a continued chat."""
    for name in CACHES:
        if (cache := inputs.get(name)) is not None and cache.get_seq_length():
            raise ValueError(
                f"{name} holds {cache.get_seq_length()} tokens, and videos cannot be added to a pruned chat: pass the "
                "whole conversation without a cache, or call disable_pruning"
            )
    prompt = {name: inputs[name] for name in (*PROMPT, *MEDIA) if name in inputs}
    return prompt, {name: value for name, value in inputs.items() if name not in prompt}


def _full(sequences: Tensor, input_ids_BL: Tensor, dropped: int) -> Tensor:
    """Sequences that begin with the full prompts; the library repeats a prompt for each of its sequences."""
    prompts = input_ids_BL.repeat_interleave(len(sequences) // len(input_ids_BL), 0).to(sequences.device)
    return torch.cat([prompts, sequences[:, prompts.shape[1] - dropped :]], dim=1)


def _shortened(model: Any, options: Mapping[str, Any], dropped: int) -> dict[str, Any]:
    """The options with `max_length` and `min_length` less the tokens that are dropped from every row."""
    options = dict(options)
    if (config := options.get("generation_config")) is not None:
        options["generation_config"] = config = copy.deepcopy(config)
    for name in ("max_length", "min_length"):
        if options.get(name):
            options[name] -= dropped
        elif getattr(config, name, None):
            setattr(config, name, getattr(config, name) - dropped)
        elif getattr(model.generation_config, name, None):
            options[name] = getattr(model.generation_config, name) - dropped
    return options


def _shown(options: Mapping[str, Any], input_ids_BL: Tensor, dropped: int) -> dict[str, Any]:
    """The options with the caller's own processors and criteria, which are shown the full sequences.

    Those of the library stay, since it recognises them by their class, unless they count the tokens of a sequence.
    """
    options, full = dict(options), partial(_full, input_ids_BL=input_ids_BL, dropped=dropped)

    def counts(process: Any) -> bool:
        return not type(process).__module__.startswith("transformers.") or any(hasattr(process, n) for n in LENGTHS)

    def processor(process: Any) -> Any:
        return lambda ids, scores: process(full(ids), scores)

    def criterion(stop: Any) -> Any:
        return lambda ids, scores, **kwargs: stop(full(ids), scores, **kwargs)

    for name, kind, show in (
        ("logits_processor", LogitsProcessorList, processor),
        ("stopping_criteria", StoppingCriteriaList, criterion),
    ):
        if options.get(name):
            options[name] = kind(show(each) if counts(each) else each for each in options[name])
    if (allowed := options.get("prefix_allowed_tokens_fn")) is not None:
        options["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(
            row, torch.cat([input_ids_BL[row].to(ids.device), ids[input_ids_BL.shape[1] - dropped :]])
        )
    return options


@dataclass
class _PromptStreamer:
    """A streamer that is given the full prompt in place of the survivors."""

    streamer: Any
    input_ids_BL: Tensor | None

    def put(self, tokens: Tensor) -> None:
        prompt, self.input_ids_BL = self.input_ids_BL, None
        self.streamer.put(tokens if prompt is None else prompt)

    @property
    def end(self) -> Callable[[], None]:
        return self.streamer.end
