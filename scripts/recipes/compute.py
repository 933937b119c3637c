"""The number of steps with which a recipe takes as many operations as the reference (train/cost/operations.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_module

from data.batching.sizes import Sizes
from scripts.recipes.table import RECIPES, REFERENCE, Recipe
from train import cli
from train.build import build_encoder
from train.config import Config
from train.cost.plans import build_kept, build_sample_cost
from train.datasets import read_index
from train.model import build_empty_model
from train.plugins import build_step_methods, build_step_rates
from train.run import register, typed

ROUNDS = 3  # arguments of a recipe may depend on the number of steps, so it is computed repeatedly


def steps_of(recipes: Sequence[Recipe], steps: int, model: Path, data: Path) -> dict[str, int]:
    """Steps of each recipe, by name, if the reference takes `steps`."""
    start = [cli.override("model.path", model), cli.override("data.train", data)]
    sizes = _sizes(_composed(start))

    def price(recipe: Recipe, steps: int) -> float:
        return operations(_composed([*start, *recipe.arguments(steps)]), sizes)

    reference = next(recipe for recipe in RECIPES if recipe.name == REFERENCE)
    budget, steps_by_recipe = steps * price(reference, steps), dict.fromkeys((recipe.name for recipe in recipes), steps)
    for recipe in (recipe for recipe in recipes if not recipe.equal_steps):
        for _ in range(ROUNDS):
            steps_by_recipe[recipe.name] = max(1, round(budget / price(recipe, steps_by_recipe[recipe.name])))
    return steps_by_recipe


def operations(config: Config, sizes: Sizes) -> float:
    """Operations of one training step, averaged over the rates that the run draws."""
    methods, everything = build_step_methods(config), np.arange(len(sizes))
    rates = replace(build_step_rates(config, 1), per_video=False)  # the same on average
    empty, kept = build_empty_model(config.model, torch.float32), build_kept(methods.first, rates)
    prices = {method: build_sample_cost(config, empty, sizes, method) for method in methods.methods}
    drawn = [(prices[methods(step)], views) for step in range(config.train.steps) for views in rates(step)]
    costs = [price(everything, sizes.in_views(everything, views, kept)).mean() for price, views in drawn]
    return float(np.mean(costs)) * config.train.batch_size * config.train.accumulation


def _sizes(config: Config) -> Sizes:
    _, index = read_index(None, "data.train", config.data.train, config.data, build_encoder(config.model, config.data))
    return index.sizes


def _composed(words: list[str]) -> Config:
    register()
    with initialize_config_module("configs", version_base="1.3"):
        return typed(compose("config", overrides=["+experiment=study", *words]))
