"""Video token pruning as one line on a stock transformers model: `enable_pruning(model, rate=0.75)`.

The model's class, names and weights stay as they are. While pruning is enabled, `forward` and `generate` of this
instance drop video tokens, with positions as `evs.positions` says; see docs/transformers.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from numbers import Real
from types import MethodType
from typing import Any

from transformers import PreTrainedModel

from evs.families import check_scheme, towers_of
from evs.methods import Method, method_named
from evs.patch import patch, patch_forward, unpatch
from evs.pipeline import check_method
from evs.rates import Constant, RateDistribution
from evs.selection import check_rate
from evs.stock.forward import pruned_backbone, pruned_forward
from evs.stock.frame_sampling import check_frames
from evs.stock.generate import pruned_generate
from evs.stock.pixel_levels import processor_normal
from evs.stock.pruning_state import SETTING, Pruning, PruningState, generation_lock, is_bound, is_ours, set_pruning
from evs.stock.trainer_callback import PruningCallback, policy_of

__all__ = [
    "PruningCallback",
    "PruningState",
    "check_frames",
    "disable_pruning",
    "enable_pruning",
    "policy_of",
    "pruning",
]


def enable_pruning(
    model: Any,
    rate: float | RateDistribution,
    *,
    method: str | Method = "evs",
    prune_at: str | int = "merger",
    scheme: str = "preserve",
    scorer_dtype: str | None = "bfloat16",
    eval_rate: float | None = None,
    seed: int = 0,
    return_logits: bool = True,
    processor: Any = None,
) -> None:
    """Let `model(**inputs)` and `model.generate(**inputs)` prune the video tokens of their inputs.

    `rate` is the fraction that is removed. A distribution (`evs.Uniform(0, 0.9)`) draws one rate per forward in
    training mode; in evaluation mode the rate is `eval_rate`, by default the constant, or 0 for a distribution.
    `method`, `prune_at` and `scheme` are as in docs/recipes.md. `scorer_dtype` is the precision of the scores, which
    should be the server's; None uses that of the features. With labels and `return_logits=False`, logits are computed
    in chunks at labelled tokens and not returned. `processor` tells pixel methods the mean and standard deviation of
    pixels if they are unusual.

    Calling it again replaces the setting. Raises ValueError for a wrapped model, a family without an adapter, a rate
    outside [0, 1), and a method or scheme that the family does not have.
    """
    base = _unwrapped(model)
    rates: Any = Constant(float(rate)) if isinstance(rate, Real) else rate
    if not hasattr(rates, "icdf"):
        raise ValueError(f"rate={rate!r} is neither a number nor a distribution: give 0.75 or evs.Uniform(0, 0.9)")
    if eval_rate is None:
        eval_rate = rates.rate if isinstance(rates, Constant) else 0.0
    check_rate(eval_rate)
    method = method_named(method, scorer_dtype, prune_at) if isinstance(method, str) else method
    check_scheme(base.config, scheme)
    check_method(base.config, method)
    normal = None if processor is None else processor_normal(processor)
    with generation_lock():
        _patch(base)
        set_pruning(base, Pruning(rates, eval_rate, method, scheme, seed, return_logits, normal))


def disable_pruning(model: Any) -> None:
    """Put the stock model back, its vision tower included. Does nothing if pruning is not enabled."""
    base = _unwrapped(model)
    with generation_lock():
        set_pruning(base, None)
        unpatch(base)


@contextmanager
def pruning(model: Any, rate: float | RateDistribution, **options: Any) -> Iterator[Any]:
    """`enable_pruning` within a `with` statement; afterwards the setting is the one from before."""
    base = _unwrapped(model)
    with generation_lock():
        before = vars(base).get(SETTING)
        enable_pruning(model, rate, **options)
    try:
        yield model
    finally:
        with generation_lock():
            if before is None:
                disable_pruning(model)
            else:
                set_pruning(base, before)


def _unwrapped(model: Any) -> Any:
    """The transformers model itself, from under PEFT."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(base, PreTrainedModel):
        raise ValueError(
            f"{type(base).__name__} is not a transformers model: call enable_pruning before wrapping the model, or on "
            "the model within"
        )
    try:
        towers_of(base)
    except AttributeError:
        raise ValueError(
            f"{type(base).__name__} has no language head: load the model with AutoModelForImageTextToText"
        ) from None
    return base


def _patch(base: Any) -> None:
    """Bind our forward and generate to the model, once. accelerate wraps the forward that it finds, and calls it."""
    kind = base.__class__
    if not is_bound(base):
        if "_original_forward" in vars(base):
            raise ValueError("the model is prepared by accelerate: call enable_pruning before Accelerator.prepare")
        within = base.base_model is not base
        if within:
            patch_forward(base.base_model, partial(pruned_backbone, base))
        if not within or "_hf_hook" in vars(base) or "forward" not in vars(base):  # a trainer's own calls base_model
            patch_forward(base, MethodType(_ours(kind, "forward"), base))
    if not is_ours(vars(base).get("generate")):
        patch(base, "generate", MethodType(_ours(kind, "generate"), base))


@lru_cache
def _ours(kind: Any, name: str) -> Any:
    """`forward` or `generate` for models of a class, with the stock signature, which trainers read."""
    stock, pruned = getattr(kind, name), {"forward": pruned_forward, "generate": pruned_generate}[name]

    def ours(self: Any, *args: Any, **kwargs: Any) -> Any:
        with generation_lock():
            if SETTING in vars(self):
                return pruned(self, *args, **kwargs)
            return stock(self, *args, **kwargs)  # disabled, but somebody has wrapped this function

    # Not __wrapped__, which accelerate follows down to the stock function when it unwraps a model.
    ours.__signature__ = inspect.signature(stock)  # type: ignore[attr-defined]
    ours.__name__, ours.__doc__, ours.evs_pruning = name, stock.__doc__, True  # type: ignore[attr-defined]
    return ours
