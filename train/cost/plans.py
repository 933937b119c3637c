"""Builds the plan of a run: which samples share a step, what they cost, and how many tokens each rate keeps."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from data.batching.plans import TERA, Budget, BudgetPlan, Plan
from data.batching.sample_cost import SampleCost
from data.sizes import KeptCounts, Sizes
from evs.families import spec_of
from evs.methods import Method
from evs.methods.base import depth
from train.config import TOWERS, Config
from train.cost import operations as cost
from train.datasets import AuditedData
from train.distributed import Mesh
from train.model import base_model
from train.optim import trained_towers
from train.views import StepRates


def build_plan(
    config: Config,
    mesh: Mesh,
    train_set: AuditedData,
    *,
    rates: StepRates,
    method: Method,
    empty: nn.Module,
) -> Plan | BudgetPlan:
    """A plan that fills micro-batches to train.token_budget, or without one to train.batch_size samples."""
    train, world, rank = config.train, mesh.data_size, mesh.data_rank
    if train.token_budget is None:
        samples = len(train_set.samples)
        return Plan(samples, train.batch_size, train.accumulation, world, rank, config.seed, mixture=train_set.mixture)
    sizes, flops, cost_of, kept = train_set.index.sizes, None, None, build_kept(method, rates)
    if train.cost_budget is not None:
        cost_of = build_sample_cost(config, empty, sizes, method)
        tokens = sizes.in_views(np.arange(len(sizes)), rates.lowest(), kept)
        auto = train.cost_budget == "auto"
        flops = cost.budget(cost_of, tokens, train.token_budget) if auto else TERA * float(train.cost_budget)
    budget = Budget(train.token_budget, train.patch_budget, flops, train.lookahead)
    freed = freed_patches(method, base_model(empty).config)
    plan = BudgetPlan(sizes, budget, rates, kept, world, rank, config.seed, train_set.mixture, cost_of, freed)
    plan.check(rates.lowest(), lambda index: train_set.samples[index].id)
    return plan


def build_sample_cost(config: Config, empty: nn.Module, sizes: Sizes, method: Method) -> SampleCost:
    """The cost of training on each sample in operations. `empty` is the model without weights."""
    model, lora = config.model, config.model.lora.r is not None
    return cost.sample_cost(
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
    """How a step processes its views. `model` is the model as it is trained, with LoRA if any."""
    distill = config.train.distill
    spec = spec_of(base_model(model).config)
    base_encodes = distill.needs_base and trained_towers(model, spec) != {"language"}
    return cost.StepSchedule(depth(method) is None, distill.alone, distill.needs_base, base_encodes)


def freed_patches(method: Method, architecture: Any) -> int | None:
    """Patches that skip the vision tower for each dropped token; None if tokens are dropped after the tower."""
    if (block := depth(method)) is None:
        return None
    return spec_of(architecture).tower_shape(architecture).merge_size ** 2 if block == 0 else 0


def build_kept(method: Method, rates: StepRates) -> KeptCounts:
    """A function that counts the kept tokens of videos at a drawn rate."""
    distribution, counts = rates.distribution, partial(kept_counts, method)
    if not distribution.per_grid:
        return counts

    def kept(grids_V: np.ndarray, tokens_V: np.ndarray, rate: float) -> np.ndarray:
        kept_V = np.zeros_like(grids_V)
        for grids in np.unique(grids_V):
            same_V = grids_V == grids
            kept_V[same_V] = counts(grids_V[same_V], tokens_V[same_V], distribution.rate_for(rate, int(grids)))
        return kept_V

    return kept


def kept_counts(method: Method, grids_V: np.ndarray, tokens_V: np.ndarray, rate: float) -> np.ndarray:
    """The method's counts of kept tokens [V] for numpy arrays."""
    return method.counts(torch.from_numpy(grids_V), torch.from_numpy(tokens_V), rate).numpy()
