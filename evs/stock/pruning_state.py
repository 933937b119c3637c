"""How a Hugging Face model is pruned, and where its training is, in attributes of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import torch

from evs.families import Adapter
from evs.methods import Method
from evs.rates import RateDistribution, draw
from evs.stock.pixel_levels import Normal

SETTING, STATE = "_evs_pruning", "pruning_state"  # names of the attributes
_LOCK = RLock()


@dataclass
class PruningState:
    """What the last forward did, and where the next one in training mode is in the training.

    `PruningCallback` counts steps and micro-batches. Without it, every forward in training mode that records gradients
    counts as a step of one micro-batch per rank. A training loop may also set `counted` and count itself.
    """

    rates: tuple[float, ...] = ()  # of every video, in prompt order
    tokens_before: int = 0
    tokens_after: int = 0
    step: int = 0  # completed optimizer steps
    micro_batch: int = 0  # of this rank within the step
    accumulation: int = 1  # micro-batches of this rank in a step
    rank: int | None = None  # data-parallel rank, and how many there are; None: as torch.distributed says
    ranks: int | None = None
    counted: bool = False  # True if somebody else sets step and micro_batch


@dataclass
class Pruning:
    """How a model is pruned."""

    rates: RateDistribution
    eval_rate: float
    method: Method
    scheme: str
    seed: int
    return_logits: bool
    normal: Normal | None  # of the processor that was given
    state: PruningState = field(default_factory=PruningState)
    adapter: Adapter | None = None  # made at the first forward, since PEFT may wrap layers until then

    def rate(self, training: bool) -> float:
        """The rate of the next forward, before it is adapted to the length of each video."""
        state = self.state
        if not training:
            return self.eval_rate
        rank, ranks = _ranks() if state.rank is None or state.ranks is None else (state.rank, state.ranks)
        index = state.micro_batch % state.accumulation * ranks + rank
        rates = draw(self.rates, state.accumulation * ranks, seed=self.seed, step=state.step)
        if not state.counted and torch.is_grad_enabled():
            state.step += 1
        return float(rates[index])


def _ranks() -> tuple[int, int]:
    """(rank, ranks) of torch.distributed."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def set_pruning(base: Any, setting: Pruning | None) -> None:
    """Set how a transformers model is pruned; None: not at all."""
    own = vars(base)
    if setting is None:
        own.pop(SETTING, None)
        own.pop(STATE, None)
    else:
        own |= {SETTING: setting, STATE: setting.state}


def generation_lock() -> AbstractContextManager[Any]:
    """A lock that `generate` holds while pruning is suspended. Does nothing in compiled code."""
    return nullcontext() if torch.compiler.is_compiling() else _LOCK


@contextmanager
def suspended(*models: Any) -> Iterator[None]:
    """The models run their stock forward and generate, as the library's decoding loop needs them."""
    settings = [(vars(base), vars(base).pop(SETTING)) for base in map(model_of, models) if SETTING in vars(base)]
    try:
        yield
    finally:
        for own, setting in settings:
            own[SETTING] = setting


def is_ours(method: Any) -> bool:
    """True for what enable_pruning binds to a model: a method, or a partial function of the model."""
    return hasattr(getattr(method, "__func__", getattr(method, "func", None)), "evs_pruning")


def is_bound(model: Any) -> bool:
    """True if the model, or the model within it, runs our forward, be it from within what others wrapped around it."""
    modules = {model, model.base_model}
    names = ("_original_forward", "_old_forward", "forward")
    return any(is_ours(vars(module).get(name)) for module in modules for name in names)


def model_of(model: Any) -> Any:
    """The transformers model, however it is wrapped."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def setting_of(model: Any) -> Pruning:
    """How a model is pruned, however it is wrapped. Raises ValueError if it is not."""
    base = model_of(model)
    if SETTING not in vars(base):
        raise ValueError(f"{type(base).__name__} has no pruning: call enable_pruning(model, rate=...) before training")
    return vars(base)[SETTING]
