"""An evaluation at several rates from one look at the videos, beside one rate and beside a look for each rate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from scripts.bench import models
from scripts.bench.setting import Setting
from scripts.bench.timing import alternate, table
from train.task import EvalRequest


@torch.no_grad()
def evaluate(setting: Setting) -> dict[str, Any]:
    """Seconds a batch, and as multiples of the first rate alone."""
    task = models.our_task(setting.model()).eval()
    batch, rates = models.build_batch(setting.shape), tuple(setting.rates)
    ways: dict[str, Callable[[], Any]] = {
        f"rate {rates[0]:g} alone": partial(task, batch, EvalRequest(rates[:1])),
        f"{len(rates)} rates, one look": partial(task, batch, EvalRequest(rates)),
        f"{len(rates)} rates, a look each": lambda: [task(batch, EvalRequest((rate,))) for rate in rates],
    }
    times = alternate(ways, setting.rounds)
    alone = next(iter(times.values()))
    multiples = {name: alone.ratio_to(each) for name, each in times.items()}
    rows = [(name, f"{times[name].median:.3f}", "{:.2f} ({:.2f}..{:.2f})".format(*multiples[name])) for name in ways]
    print(table(("evaluation of", "seconds", "times the first"), rows))
    return {name: {"seconds": times[name].median, "multiple": multiples[name][0]} for name in ways}
