"""The training step and the selection of kept tokens, timed together with the step of transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any, TypeAlias

import torch

from evs import FrameDelta, Grid, Uniform, draw
from evs.families import towers_of
from evs.methods.base import depth
from scripts.bench import models
from scripts.bench.setting import FROZEN, Setting, build_optimizer, our_step, run_step, stock_step
from scripts.bench.step_memory import check_memory, forecast_gib, memory_table, step_memory
from scripts.bench.timing import Timed, alternate, release, table, timed
from train.cost import operations as cost
from train.cost.peak_memory import Memory, watch
from train.metrics.meters import Meter, peak_operations
from train.task import TrainRequest

VIEWS = (0.75, 0.75)
Case: TypeAlias = tuple[str, float]  # where tokens are pruned (of models.PLACES), or "stock"; the pruning rate


def step(setting: Setting) -> dict[str, Any]:
    """Seconds of forward and backward by part of the model, utilization and peak memory, with frozen and trained vision
    tower, pruned after and before it. `setting.extras` adds the step of transformers, two views, memory in separate
    processes and mixed rates. ValueError if the step does not fit the device's memory."""
    result: dict[str, Any] = {}
    for name in setting.towers:
        frozen = FROZEN[name]
        release()
        result[name] = _step_times(setting, frozen)
        print(f"\nvision tower {name}: forward + backward, seconds")
        for place in models.PLACES:
            print(f"pruned {place} it\n{_step_table(result[name][place])}")
        print(
            ", ".join(
                f"{key[:-2]} {result[name][key]:.3f}" for key in ("stock_s", "optimizer_s") if key in result[name]
            )
        )
        if "views" in setting.extras:
            result[name]["views"] = views = _views(setting, frozen)
            print(f"2 views at rate {VIEWS[0]:g} against a step at each, seconds\n{_views_table(views)}")
        if "memory" in setting.extras:
            result[name]["memory_gib"] = memory = step_memory(setting, frozen)
            print(f"peak memory of forward + backward + optimizer, GiB\n{memory_table(memory)}")
    if "mixed" in setting.extras:
        result["mixed"] = mixed = _mixed_rates(setting)
        print(f"\nuniform rates on [0, .9], a fresh one every step against the same one again: {mixed['ratio']:.3f}")
    return result


def _step_times(setting: Setting, frozen: tuple[str, ...]) -> dict[str, Any]:
    check_memory(setting, frozen)
    memory, ours = watch(setting.device), setting.trained(frozen)
    tasks = {place: models.our_task(ours, method) for place, method in models.PLACES.items()}
    batch = models.build_batch(setting.shape)
    steps = {(place, rate): our_step(task, batch, rate) for place, task in tasks.items() for rate in setting.rates}
    if "stock" in setting.extras:
        steps["stock", 0.0] = stock_step(setting.trained(frozen), models.stock_inputs(batch, setting.device))
    times = alternate(steps, setting.rounds)
    stock = times.get(("stock", 0.0))
    steps.clear()  # frees the stock model
    updates = _updates(
        setting,
        ours,
        memory,
        {(place, rate): partial(tasks[place], batch, TrainRequest((rate,))) for place, rate in times if place in tasks},
    )
    rows = {place: _against(setting, frozen, times, place) for place in tasks}
    for (place, rate), update in updates.items():
        row = rows[place][f"{rate:g}"]
        row |= update | {"forecast_gib": forecast_gib(setting, rate, setting.training(frozen), place)}
        row |= _utilization(setting, frozen, place, rate, row)
    return {
        "optimizer_s": median(row["spans_s"]["optimizer"] for row in updates.values()),
        **({} if stock is None else {"stock_s": stock.median, "stock_rounds": stock.seconds}),
        **rows,
    }


def _updates(
    setting: Setting, model: Any, memory: Memory, forwards: dict[Case, Callable[[], Any]]
) -> dict[Case, dict[str, Any]]:
    """One step of every case with the optimizer's update: seconds by part of the model, and peak GiB."""
    meter, optimizer = Meter(setting.device, model.config, memory), build_optimizer(model)
    for name, tower in zip(("vision", "language_model", "head"), towers_of(model)):
        meter.watch(tower, name)

    def update() -> None:
        with meter.span("optimizer"):
            optimizer.step()
        optimizer.zero_grad()

    results = {}
    for case, forward in [*list(forwards.items())[:1], *forwards.items()]:  # the first one makes the optimizer's states
        watched = watch(setting.device)
        meter.restart()
        run_step(forward, update, meter)
        _, spans = meter.read()
        parts = {name.removeprefix("time/"): seconds for name, seconds in spans.items() if name != "time/step"}
        results[case] = {"spans_s": parts, "peak_gib": replace(watched, base=memory.base).peak()}
    return results


def _utilization(
    setting: Setting, frozen: tuple[str, ...], place: str, rate: float, row: dict[str, Any]
) -> dict[str, float | None]:
    """Tokens per second, and the utilization (MFU, without recomputed operations) of the step and of the language model
    with its head. The latter is None for a trained tower, whose backward pass is not timed separately."""
    work = models.work(setting.shape, rate, depth(models.PLACES[place]))
    done = cost.training(models.model_config(setting.shape), work, frozen=frozen)
    peak, spans = peak_operations(setting.device), row["spans_s"]
    share = None if peak is None else done.total / row["seconds"] / peak
    language = sum(spans[name] for name in ("language_model", "head", "backward"))
    language_share = None if peak is None or "vision" not in frozen else (done.language + done.head) / language / peak
    return {"tokens_per_s": work.tokens / row["seconds"], "mfu": share, "language_mfu": language_share}


def _against(setting: Setting, frozen: tuple[str, ...], times: dict[Case, Timed], place: str) -> dict[str, Any]:
    """Seconds of every rate, relative to the step of transformers and to the share of operations that remains."""
    config, before = models.model_config(setting.shape), depth(models.PLACES[place])
    works = {rate: models.work(setting.shape, rate, before) for rate in setting.rates}
    operations = {rate: cost.training(config, work, **setting.counted(frozen)).total for rate, work in works.items()}
    first, stock = setting.rates[0], times.get(("stock", 0.0))
    rows: dict[str, Any] = {}
    for rate in setting.rates:
        measured = times[place, rate]
        ideal = times[place, first].median * operations[rate] / operations[first]
        rows[f"{rate:g}"] = {
            "seconds": measured.median,
            **({} if stock is None else {"stock_over_ours": measured.ratio_to(stock)}),
            "ideal_s": ideal,
            "over_ideal": measured.median / ideal,
            "tera_operations": operations[rate] / 1e12,
            "rounds": measured.seconds,
        }
    return rows


def _step_table(rates: dict[str, Any]) -> str:
    rows = [
        (
            rate,
            f"{row['seconds']:.3f}",
            "{:.2f} ({:.2f}..{:.2f})".format(*row["stock_over_ours"]) if "stock_over_ours" in row else "",
            f"{row['ideal_s']:.3f}",
            f"{row['over_ideal']:.2f}",
            f"{row['tera_operations']:.2f}",
            "" if row["mfu"] is None else f"{row['mfu']:.2f}",
        )
        for rate, row in rates.items()
    ]
    return table(("rate", "seconds", "times faster than stock", "ideal", "over ideal", "10^12 ops", "MFU"), rows)


def _views(setting: Setting, frozen: tuple[str, ...]) -> dict[str, Any]:
    """Seconds of one step with two views and of a step for each rate, and their ratio by the cost model. Video
    decoding, which views also share, is not timed."""
    task, batch = models.our_task(setting.trained(frozen)), models.build_batch(setting.shape)
    apart = [our_step(task, batch, rate) for rate in VIEWS]
    steps = {"views": our_step(task, batch, *VIEWS), "apart": lambda: [run() for run in apart]}
    times = alternate(steps, setting.rounds)
    works, config = [models.work(setting.shape, rate) for rate in VIEWS], models.model_config(setting.shape)
    together = cost.training_in_views(config, works, cost.ONE_VIEW, **setting.counted(frozen)).total
    separate = [cost.training(config, work, **setting.counted(frozen)).total for work in works]
    saved = times["views"].ratio_to(times["apart"])
    rounds = {name: timed.seconds for name, timed in times.items()}
    return {"apart_over_views": saved, "cost_model": sum(separate) / together, "rounds": rounds} | {
        f"{name}_s": timed.median for name, timed in times.items()
    }


def _views_table(result: dict[str, Any]) -> str:
    measured, ideal = result["apart_over_views"], result["cost_model"]
    cells = [f"{result['apart_s']:.3f}", f"{result['views_s']:.3f}", "{:.2f} ({:.2f}..{:.2f})".format(*measured)]
    header = ("two steps", "two views", "times faster", "by the cost model", "measured / model")
    return table(header, [(*cells, f"{ideal:.2f}", f"{measured[0] / ideal:.2f}")])


def _mixed_rates(setting: Setting) -> dict[str, Any]:
    """Seconds of steps at newly drawn rates and of the same steps repeated: the cost of changing shapes."""
    task, batch = models.our_task(setting.trained(("vision",))), models.build_batch(setting.shape)
    our_step(task, batch, 0.5)()
    fresh, again, rates = [], [], []
    for number in range(4 * setting.rounds):
        rate = draw(Uniform(), 1, seed=0, step=number, levels=64).item()
        run = our_step(task, batch, rate)
        rates.append(rate)
        fresh.append(timed(run))
        again.append(timed(run))
    return {"ratio": sum(fresh) / sum(again), "rates": rates, "fresh_s": fresh, "again_s": again}


def mask(setting: Setting) -> dict[str, Any]:
    """Seconds of scoring and selection for 16 videos of 32 grids of 256 tokens, relative to the step of that batch at
    rate 0. The step is timed for one video and multiplied by 16, because the batch would not fit a CPU's memory."""
    grid, videos = Grid(32, 16, 16), 16
    width = setting.shape.text[1]
    features = torch.randn(videos, grid.tokens, width, dtype=setting.dtype, device=setting.device)
    method = FrameDelta("bfloat16")

    def choose() -> None:
        for features_MC in features:
            method.keep(features_MC, grid, 0.75)

    shape = replace(setting.shape, clips=1, grid=(grid.T, grid.H, grid.W))
    step_of_one = our_step(models.our_task(setting.trained(("vision",))), models.build_batch(shape), 0.0)
    times = alternate({"mask": choose, "step": step_of_one}, setting.rounds)
    share = times["mask"].median / (videos * times["step"].median)
    print(f"mask of {videos} videos {times['mask'].median:.3f} s, rate-0 step of one {times['step'].median:.3f} s: ")
    print(f"{100 * share:.2f} % of the step of all {videos}")
    return {"mask_s": times["mask"].median, "step_of_one_s": times["step"].median, "share": share}
