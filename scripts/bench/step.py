"""The training step, the prefill and the choice of survivors, ours beside the library's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from evs import FrameDelta, Grid, Uniform, draw
from evs.methods.base import depth
from scripts.bench import models
from scripts.bench.timing import Timed, alternate, release, table, timed
from train.config import Config, ModelConfig
from train.cost import memory_forecast as preflight
from train.cost import operations as cost
from train.metrics.memory import watch
from train.model import fit_for_training
from train.views import Views

VIEWS = (0.75, 0.75)
FROZEN: dict[str, tuple[str, ...]] = {"frozen": ("vision",), "trained": ()}


@dataclass(frozen=True)
class Setting:
    """What the cases have in common."""

    shape: models.Shape
    rates: Sequence[float]
    rounds: int
    device: torch.device
    dtype: torch.dtype
    attention: str
    checkpointing: bool = False  # activations are recomputed
    compile: bool = False

    def model(self) -> Any:
        return models.build_model(self.shape, self.device, self.dtype, self.attention)

    def trained(self, frozen: tuple[str, ...]) -> Any:
        """A model as train/run.py fits it for training."""
        return fit_for_training(self.model(), self.training(frozen))

    def training(self, frozen: tuple[str, ...], checkpointing: bool | None = None) -> ModelConfig:
        again = self.checkpointing if checkpointing is None else checkpointing
        return ModelConfig(freeze=list(frozen), gradient_checkpointing=again, compile=self.compile)

    def counted(self, frozen: tuple[str, ...]) -> dict[str, Any]:
        """How it is trained, in the terms of the cost model."""
        return {"frozen": frozen, "recomputed": self.training(frozen).recomputed}


def step(setting: Setting) -> dict[str, Any]:
    """Forward + backward with the vision tower frozen and trained, pruned after it and before it; the optimizer apart,
    memory, mixed rates."""
    result: dict[str, Any] = {}
    for name, frozen in FROZEN.items():
        release()
        result[name] = _step_times(setting, frozen)
        print(f"\nvision tower {name}: forward + backward, seconds")
        for place in models.PLACES:
            print(f"pruned {place} it\n{_step_table(result[name][place])}")
        print("stock {stock_s:.3f}, optimizer {optimizer_s:.3f}".format(**result[name]))
        result[name]["views"] = views = _views(setting, frozen)
        print(f"2 views at rate {VIEWS[0]:g} against a step at each, seconds\n{_views_table(views)}")
        result[name]["memory_gib"] = memory = _step_memory(setting, frozen)
        print(f"peak memory of forward + backward + optimizer, GiB\n{_memory_table(memory)}")
    result["mixed"] = mixed = _mixed_rates(setting)
    print(f"\nuniform rates on [0, .9], a fresh one every step against the same one again: {mixed['ratio']:.3f}")
    return result


def _step_times(setting: Setting, frozen: tuple[str, ...]) -> dict[str, Any]:
    stock, ours = setting.trained(frozen), setting.trained(frozen)
    tasks = {place: models.our_task(ours, method) for place, method in models.PLACES.items()}
    batch = models.build_batch(setting.shape)
    steps = {(place, rate): _our_step(task, batch, rate) for place, task in tasks.items() for rate in setting.rates}
    steps["stock", 0.0] = _stock_step(stock, models.stock_inputs(batch, setting.device))
    times = alternate(steps, setting.rounds)
    optimizer = _optimizer(ours)
    _our_step(tasks["after"], batch, setting.rates[-1], after=lambda: None)()
    apart = alternate({"optimizer": optimizer.step}, setting.rounds)["optimizer"]
    whole = times["stock", 0.0]
    return {
        **{"optimizer_s": apart.median, "stock_s": whole.median, "stock_rounds": whole.seconds},
        **{place: _against(setting, frozen, times, place) for place in tasks},
    }


def _against(
    setting: Setting, frozen: tuple[str, ...], times: dict[tuple[str, float], Timed], place: str
) -> dict[str, Any]:
    """Every rate's time beside the stock's and beside what the operations that remain let one hope for."""
    config, before = models.model_config(setting.shape), depth(models.PLACES[place])
    works = {rate: models.work(setting.shape, rate, before) for rate in setting.rates}
    operations = {rate: cost.training(config, work, **setting.counted(frozen)).total for rate, work in works.items()}
    first = setting.rates[0]
    rows = {}
    for rate in setting.rates:
        mine = times[place, rate]
        ideal = times[place, first].median * operations[rate] / operations[first]
        rows[f"{rate:g}"] = {
            "seconds": mine.median,
            "stock_over_ours": mine.ratio_to(times["stock", 0.0]),
            "ideal_s": ideal,
            "over_ideal": mine.median / ideal,
            "tera_operations": operations[rate] / 1e12,
            "rounds": mine.seconds,
        }
    return rows


def _step_table(rates: dict[str, Any]) -> str:
    rows = [
        (
            rate,
            f"{row['seconds']:.3f}",
            "{:.2f} ({:.2f}..{:.2f})".format(*row["stock_over_ours"]),
            f"{row['ideal_s']:.3f}",
            f"{row['over_ideal']:.2f}",
            f"{row['tera_operations']:.2f}",
        )
        for rate, row in rates.items()
    ]
    return table(("rate", "seconds", "times faster than stock", "ideal", "over ideal", "10^12 ops"), rows)


def _views(setting: Setting, frozen: tuple[str, ...]) -> dict[str, Any]:
    """One step that reads what it has seen at two rates, beside a step for each: times, and their ratio by the cost
    model. Decoding, which views share too, is left out."""
    task, batch = models.our_task(setting.trained(frozen)), models.build_batch(setting.shape)
    apart = [_our_step(task, batch, rate) for rate in VIEWS]
    steps = {"views": _our_step(task, batch, Views(VIEWS)), "apart": lambda: [run() for run in apart]}
    times = alternate(steps, setting.rounds)
    works, config = [models.work(setting.shape, rate) for rate in VIEWS], models.model_config(setting.shape)
    together = cost.training_in_views(config, works, cost.ONE_VIEW, **setting.counted(frozen)).total
    each = [cost.training(config, work, **setting.counted(frozen)).total for work in works]
    saved = times["views"].ratio_to(times["apart"])
    rounds = {name: timed.seconds for name, timed in times.items()}
    return {"apart_over_views": saved, "cost_model": sum(each) / together, "rounds": rounds} | {
        f"{name}_s": timed.median for name, timed in times.items()
    }


def _views_table(result: dict[str, Any]) -> str:
    measured, ideal = result["apart_over_views"], result["cost_model"]
    cells = [f"{result['apart_s']:.3f}", f"{result['views_s']:.3f}", "{:.2f} ({:.2f}..{:.2f})".format(*measured)]
    header = ("two steps", "two views", "times faster", "by the cost model", "measured / model")
    return table(header, [(*cells, f"{ideal:.2f}", f"{measured[0] / ideal:.2f}")])


def _our_step(task: Any, batch: Any, rate: float | Views, after: Callable[[], Any] | None = None) -> Callable[[], None]:
    """Forward and backward, then `after`, which by default drops the gradients."""

    def run() -> None:
        out = task(batch, rate)
        (out.loss_sum / out.targets).backward()
        (after or task.zero_grad)()

    return run


def _stock_step(
    model: Any, inputs: dict[str, torch.Tensor], after: Callable[[], Any] | None = None
) -> Callable[[], None]:
    def run() -> None:
        model(**inputs).loss.backward()
        (after or model.zero_grad)()

    return run


def _optimizer(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)


def _step_memory(setting: Setting, frozen: tuple[str, ...]) -> dict[str, dict[str, float | None]]:
    """GiB at the peak of a step that starts from weights and optimizer states, and what the preflight forecasts of it.

    Each contender runs in a fresh process, with gradient checkpointing as asked, and once with it.
    """
    as_asked = setting.training(frozen)
    ours = {f"{rate:g}": (rate, as_asked, "after") for rate in (setting.rates[0], 0.75)}
    ours["0.75 checkpointed"] = (0.75, setting.training(frozen, checkpointing=True), "after")
    ours["0.75 before the tower"] = (0.75, as_asked, "before")
    release()
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        measured = pool.starmap(partial(_peak_of, setting), [(None, as_asked, "after"), *ours.values()], chunksize=1)
    return {
        "measured": dict(zip(("stock", *ours), measured)),
        "forecast": {name: _forecast(setting, *each) for name, each in ours.items()},
    }


def _memory_table(memory: dict[str, dict[str, float | None]]) -> str:
    rows = [(name, peak, memory["forecast"].get(name, "")) for name, peak in memory["measured"].items()]
    return table(("rate", "measured", "forecast"), rows)


def _peak_of(setting: Setting, rate: float | None, config: ModelConfig, place: str) -> float | None:
    """Of the stock step where `rate` is None."""
    batch = models.build_batch(setting.shape)
    memory = watch(setting.device)
    model = fit_for_training(setting.model(), config)
    update = _update(_optimizer(model))
    if rate is None:
        run = _stock_step(model, models.stock_inputs(batch, setting.device), update)
    else:
        run = _our_step(models.our_task(model, models.PLACES[place]), batch, rate, update)
    run()
    run()  # with optimizer states from the start
    peak = memory.peak()
    return None if peak is None else round(peak, 2)


def _forecast(setting: Setting, rate: float, config: ModelConfig, place: str) -> float:
    """GiB that `train/run.py` forecasts before such a step."""
    with torch.device("meta"):
        model = fit_for_training(Qwen2_5_VLForConditionalGeneration(models.model_config(setting.shape)), config)
    work = models.work(setting.shape, rate, depth(models.PLACES[place]))
    text = setting.shape.clips * (models.PROMPT + models.ANSWER)
    batch = preflight.Largest(work.tokens, text, work.patches, frames=2 * setting.shape.grid[0])
    parts = preflight.estimate(
        Config(model=config), model.to(setting.dtype), model.config, batch, world=1, device=setting.device
    )
    return round(parts.total / 2**30, 2)


def _update(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return update


def _mixed_rates(setting: Setting) -> dict[str, Any]:
    """Seconds of a step at a freshly drawn rate, and of the same step again: the price of changing shapes."""
    task, batch = models.our_task(setting.trained(("vision",))), models.build_batch(setting.shape)
    _our_step(task, batch, 0.5)()
    fresh, again, rates = [], [], []
    for number in range(4 * setting.rounds):
        rate = draw(Uniform(), 1, seed=0, step=number, levels=64).item()
        run = _our_step(task, batch, rate)
        rates.append(rate)
        fresh.append(timed(run))
        again.append(timed(run))
    return {"ratio": sum(fresh) / sum(again), "rates": rates, "fresh_s": fresh, "again_s": again}


def mask(setting: Setting) -> dict[str, Any]:
    """Scoring and selection for 16 videos of 32 grids of 256 tokens against the rate-0 step of the same batch.

    The step is timed on one such video and taken 16 times: on a CPU the batch would not fit.
    """
    grid, videos = Grid(32, 16, 16), 16
    width = setting.shape.text[1]
    features = torch.randn(videos, grid.tokens, width, dtype=setting.dtype, device=setting.device)
    method = FrameDelta("bfloat16")

    def choose() -> None:
        for each in features:
            method.keep(each, grid, 0.75)

    shape = replace(setting.shape, clips=1, grid=(grid.T, grid.H, grid.W))
    whole = _our_step(models.our_task(setting.trained(("vision",))), models.build_batch(shape), 0.0)
    times = alternate({"mask": choose, "step": whole}, setting.rounds)
    share = times["mask"].median / (videos * times["step"].median)
    print(f"mask of {videos} videos {times['mask'].median:.3f} s, rate-0 step of one {times['step'].median:.3f} s: ")
    print(f"{100 * share:.2f} % of the step of all {videos}")
    return {"mask_s": times["mask"].median, "step_of_one_s": times["step"].median, "share": share}
