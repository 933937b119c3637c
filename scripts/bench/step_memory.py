"""The peak memory of a training step, and what `train/run.py` forecasts of it."""

from __future__ import annotations

from functools import partial
from multiprocessing import get_context

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from evs.methods.base import depth
from scripts.bench import models
from scripts.bench.setting import Setting, build_optimizer, our_step, stock_step, updating
from scripts.bench.timing import release, table
from train.config import Config, ModelConfig
from train.cost import memory_forecast as preflight
from train.cost.peak_memory import watch
from train.model import fit_for_training


def check_memory(setting: Setting, frozen: tuple[str, ...]) -> None:
    """Raise ValueError if the forecast of the largest step is more than the device has free."""
    needed = forecast_gib(setting, min(setting.rates), setting.training(frozen), "after")
    free = preflight.available(setting.device, 1) / 2**30
    if needed > free:
        raise ValueError(f"a training step of this shape needs about {needed:.1f} GiB and {free:.1f} are free")


def step_memory(setting: Setting, frozen: tuple[str, ...]) -> dict[str, dict[str, float | None]]:
    """Peak GiB of a step that starts with weights and optimizer states, and the preflight's forecast of it.

    Every variant runs in a new process: as `setting` says, and once with gradient checkpointing.
    """
    as_set = setting.training(frozen)
    ours = {f"{rate:g}": (rate, as_set, "after") for rate in (setting.rates[0], 0.75)}
    ours["0.75 checkpointed"] = (0.75, setting.training(frozen, checkpointing=True), "after")
    ours["0.75 before the tower"] = (0.75, as_set, "before")
    release()
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        measured = pool.starmap(partial(_peak_of, setting), [(None, as_set, "after"), *ours.values()], chunksize=1)
    return {
        "measured": dict(zip(("stock", *ours), measured)),
        "forecast": {name: forecast_gib(setting, *each) for name, each in ours.items()},
    }


def memory_table(memory: dict[str, dict[str, float | None]]) -> str:
    rows = [(name, peak, memory["forecast"].get(name, "")) for name, peak in memory["measured"].items()]
    return table(("rate", "measured", "forecast"), rows)


def _peak_of(setting: Setting, rate: float | None, config: ModelConfig, place: str) -> float | None:
    """Peak GiB of a step at `rate`; None: of the step of transformers."""
    batch = models.build_batch(setting.shape)
    memory = watch(setting.device)
    model = fit_for_training(setting.model(), config)
    update = updating(build_optimizer(model))
    if rate is None:
        run = stock_step(model, models.stock_inputs(batch, setting.device), update)
    else:
        run = our_step(models.our_task(model, models.PLACES[place]), batch, rate, after=update)
    run()
    run()  # with optimizer states from the start
    peak = memory.peak()
    return None if peak is None else round(peak, 2)


def forecast_gib(setting: Setting, rate: float, config: ModelConfig, place: str) -> float:
    """Peak GiB that `train/run.py` forecasts for such a step."""
    with torch.device("meta"):
        model = fit_for_training(Qwen2_5_VLForConditionalGeneration(models.model_config(setting.shape)), config)
    work = models.work(setting.shape, rate, depth(models.PLACES[place]))
    text = setting.shape.clips * (models.PROMPT + models.ANSWER)
    batch = preflight.Largest(work.tokens, text, work.patches, frames=2 * setting.shape.grid[0])
    parts = preflight.estimate(
        Config(model=config), model.to(setting.dtype), model.config, batch, world=1, device=setting.device
    )
    return round(parts.total / 2**30, 2)
