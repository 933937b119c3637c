"""Time to the first token, for vision tower and language model separately, pruned after or before the tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from evs import keep_mask, prune
from evs.methods.base import depth
from scripts.bench import models
from scripts.bench.setting import Setting
from scripts.bench.timing import Timed, alternate, table
from train.cost import operations as cost


@torch.no_grad()
def prefill(setting: Setting) -> dict[str, Any]:
    """Seconds for one clip: the vision tower on all tokens and on the kept tokens of each rate, the language model at
    each rate."""
    model = setting.model().eval()
    stock = models.stock_twin(model) if "stock" in setting.extras else None
    adapter = models.our_task(model).eval().adapter
    frames, height, width = setting.shape.grid
    frames = 4 * frames if setting.tokens is None else max(1, setting.tokens // (height * width))
    shape = replace(setting.shape, clips=1, grid=(frames, height, width))
    batch = models.build_batch(shape)
    grids, embedded = adapter.grids(batch), adapter.embed_prompt(batch)
    full, features = adapter.encode_media(batch, embedded)

    def language(rate: float) -> Callable[[], Any]:
        """Selection, language model and head, from the features of the tower."""

        def run() -> None:
            keep_N = keep_mask(full, features, grids, [rate], models.PLACES["after"])
            model.lm_head(adapter.decode(prune(full, keep_N))[-1:])

        return run

    def tower(rate: float) -> Callable[[], Any]:
        """Selection, and the tower on kept tokens, from patches."""

        def run() -> None:
            keep_N = keep_mask(embedded, adapter.pixels(batch), grids, [rate], models.PLACES["before"])
            adapter.encode_kept(batch, embedded, keep_N, 0)

        return run

    variants = {f"language {rate:g}": language(rate) for rate in setting.rates}
    variants |= {f"tower {rate:g}": tower(rate) for rate in setting.rates if rate > 0}
    variants["tower"] = lambda: adapter.encode_media(batch, embedded)
    if stock is not None:
        inputs = {k: v for k, v in models.stock_inputs(batch, setting.device).items() if k != "labels"}
        variants["stock"] = partial(stock, **inputs, use_cache=False, logits_to_keep=1)
    times = alternate(variants, setting.rounds)
    print(f"prefill of {shape.grid} tokens and {models.PROMPT + models.ANSWER} of text, seconds")
    print(_table(setting, times))
    if stock is not None:
        print(f"stock, tower and language model: {times['stock'].median:.3f}\n\n{_counted(setting.rates)}")
    return {name: {"seconds": timed.median, "rounds": timed.seconds} for name, timed in times.items()}


def _table(setting: Setting, times: dict[str, Timed]) -> str:
    full = times["tower"].median
    first = times[f"language {setting.rates[0]:g}"].median + full
    rows = []
    for rate in setting.rates:
        language = times[f"language {rate:g}"].median
        kept = times[f"tower {rate:g}"].median if rate > 0 else full
        after, before = language + full, language + kept
        figures = [f"{seconds:.3f}" for seconds in (language, full, after, kept, before)]
        faster = [f"{first / after:.2f}", f"{full / kept:.2f}", f"{first / before:.2f}"]
        rows.append((f"{rate:g}", *figures[:3], faster[0], figures[3], faster[1], figures[4], faster[2]))
    header = ("rate", "language model", "tower", "pruned after: sum", "faster", "pruned before: tower", "faster", "sum")
    return table((*header, "faster"), rows)


def _counted(rates: Sequence[float]) -> str:
    """How many times fewer operations a prefill takes than at rate 0, by the cost model."""
    rows = []
    for name, shape in models.SHAPES.items():
        unpruned = _operations(shape, 0.0, None)
        for place, method in models.PLACES.items():
            fewer = [unpruned / _operations(shape, rate, depth(method)) for rate in rates]
            rows.append((name, place, *(f"{ratio:.2f}" for ratio in fewer)))
    header = ("times fewer operations", "pruned", *(f"{rate:g}" for rate in rates))
    return table(header, rows)


def _operations(shape: models.Shape, rate: float, before: int | None) -> float:
    work = replace(models.work(shape, rate, before), targets=shape.clips)
    return cost.forward(models.model_config(shape), work).total
