"""Which samples share a step, what they cost, and how many of their tokens each rate keeps."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from data.batching.plans import TERA, Budget, BudgetPlan, Plan
from data.batching.sample_cost import SampleCost
from data.batching.sizes import KeptCounts, Sizes
from evs.families import spec_of
from evs.methods import Method
from evs.methods.base import depth
from evs.rates import FrameBeta
from train.config import TOWERS, Config
from train.cost import operations as cost
from train.datasets import AuditedData
from train.model import base_model
from train.optim import trained_towers
from train.views import StepRates


def build_plan(
    config: Config,
    engine: Accelerator,
    train_set: AuditedData,
    *,
    rates: StepRates,
    method: Method,
    empty: nn.Module,
) -> Plan | BudgetPlan:
    """Which samples share a step: to a budget if there is one, else by number."""
    train, world, rank = config.train, engine.num_processes, engine.process_index
    if train.token_budget is None:
        samples = len(train_set.samples)
        return Plan(samples, train.batch_size, train.accumulation, world, rank, config.seed, mixture=train_set.mixture)
    sizes, allowed, price, kept = train_set.index.sizes, None, None, build_kept(method, rates)
    if train.cost_budget is not None:
        price = build_price(config, empty, sizes, method)
        tokens = sizes.in_views(np.arange(len(sizes)), rates.lowest(), kept)
        automatic = train.cost_budget == "auto"
        allowed = cost.budget(price, tokens, train.token_budget) if automatic else TERA * float(train.cost_budget)
    budget = Budget(train.token_budget, train.patch_budget, allowed, train.lookahead)
    freed = freed_patches(method, base_model(empty).config)
    plan = BudgetPlan(sizes, budget, rates, kept, world, rank, config.seed, train_set.mixture, price, freed)
    plan.check(rates.lowest(), lambda place: train_set.samples[place].id)
    return plan


def build_price(config: Config, empty: nn.Module, sizes: Sizes, method: Method) -> SampleCost:
    """What every sample costs in a step as it is trained. `empty`: the model, without weights."""
    model, lora = config.model, config.model.lora.r is not None
    return cost.price(
        base_model(empty).config,
        sizes,
        depth(method),
        config.train.views,
        schedule_of(config, method, empty),
        frozen=TOWERS if lora else model.freeze,
        lora=lora,
        recomputed=model.recomputed,
    )


def schedule_of(config: Config, method: Method, model: nn.Module) -> cost.StepSchedule:
    """How the run's steps go through their views. `model` as it is trained."""
    distill = config.train.distill
    spec = spec_of(base_model(model).config)
    base_sees = distill.needs_base and trained_towers(model, spec) != {"language"}
    return cost.StepSchedule(depth(method) is None, distill.alone, distill.needs_base, base_sees)


def freed_patches(method: Method, architecture: Any) -> int | None:
    """Patches that do not enter the vision tower for a token that is dropped; None where it is dropped after it."""
    if (before := depth(method)) is None:
        return None
    return spec_of(architecture).tower_shape(architecture).merge_size ** 2 if before == 0 else 0


def build_kept(method: Method, rates: StepRates) -> KeptCounts:
    """Tokens kept of videos at a drawn rate, which may be a share of what each of them can lose."""
    distribution, counts = rates.distribution, partial(kept_counts, method)
    if not isinstance(distribution, FrameBeta):
        return counts

    def kept(grids_V: np.ndarray, tokens_V: np.ndarray, share: float) -> np.ndarray:
        found_V = np.zeros_like(grids_V)
        for grids in np.unique(grids_V):
            of = grids_V == grids
            found_V[of] = counts(grids_V[of], tokens_V[of], distribution.of_video(share, int(grids)))
        return found_V

    return kept


def kept_counts(method: Method, grids_V: np.ndarray, tokens_V: np.ndarray, rate: float) -> np.ndarray:
    """The method's counts, for data's arrays."""
    return method.counts(torch.from_numpy(grids_V), torch.from_numpy(tokens_V), rate).numpy()
