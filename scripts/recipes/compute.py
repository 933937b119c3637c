"""How many steps of a recipe cost as many operations as the reference's (train/report/cost.py)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_module
from transformers import AutoConfig

from data.sizes import Sizes
from scripts.recipes.table import RECIPES, REFERENCE, Recipe
from train.build import build_encoder, build_method, build_price, build_rates, kept_counts
from train.config import Config
from train.rows import read_index
from train.run import register, typed

QUANTILES = 64  # of a distribution, whose mean cost stands for that of its draws


def steps_of(recipes: Sequence[Recipe], steps: int, model: Path, data: Path) -> dict[str, int]:
    """Of each recipe, by name, where the reference takes `steps`."""
    start = [f"model.path={model}", f"data.train={data}"]
    sizes = _sizes(_composed(start))
    reference = next(recipe for recipe in RECIPES if recipe.name == REFERENCE)

    def price(recipe: Recipe) -> float:
        return operations(_composed([*start, *recipe.spelt(steps)]), sizes)

    budget = steps * price(reference)
    return {each.name: steps if each.equal_steps else round(budget / price(each)) for each in recipes}


def operations(config: Config, sizes: Sizes) -> float:
    """Of one training step, on average."""
    method, everything = build_method(config.method), np.arange(len(sizes))
    price = build_price(config.model, AutoConfig.from_pretrained(config.model.path), sizes, method)
    kept = partial(kept_counts, method)
    rates = build_rates(config.rate).icdf((torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES)
    mean = np.mean([price(everything, sizes.tokens(everything, rate, kept)).mean() for rate in rates.tolist()])
    return float(mean) * config.train.batch_size * config.train.accumulation


def _sizes(config: Config) -> Sizes:
    _, index = read_index(None, "data.train", config.data.train, config.data, build_encoder(config.model, config.data))
    return index.sizes


def _composed(words: list[str]) -> Config:
    register()
    with initialize_config_module("configs", version_base="1.3"):
        return typed(compose("config", overrides=["+experiment=study", *words]))
