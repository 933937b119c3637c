"""The number of steps with which a recipe takes as many operations as the reference (train/cost/operations.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from hydra import compose, initialize_config_module

from data.sizes import Sizes
from scripts.recipes.runs import Seed
from scripts.recipes.table import BASE, RECIPES, REFERENCE, Recipe
from train import cli
from train.build import build_encoder
from train.config import Config
from train.cost.plans import build_kept, build_sample_cost
from train.datasets import read_index
from train.model import build_empty_model
from train.plugins import build_step_methods, build_step_rates
from train.run import register, typed


def steps_of(recipes: Sequence[Recipe], steps: int, seed: Seed) -> dict[str, int]:
    """Steps of each recipe, by name, if the reference takes `steps`. Images and text count as free."""
    reference = next(recipe for recipe in RECIPES if recipe.name == REFERENCE)
    budget = steps * _cost(reference, steps, seed)
    return {
        recipe.name: steps if recipe.equal_steps else max(1, round(recipe.budget * budget / _cost(recipe, steps, seed)))
        for recipe in recipes
    }


def _cost(recipe: Recipe, steps: int, seed: Seed) -> float:
    """Operations of one step."""
    start = [cli.override("model.path", seed.checkpoint(BASE)), seed.mixture(0.0, recipe.reduced)]
    config = _composed([*start, *recipe.arguments(steps)])
    return (1 - recipe.stills) * operations(config, _sizes(config))


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
