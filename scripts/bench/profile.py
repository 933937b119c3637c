"""The most expensive operations of a training step, and the lines at which the host waits for the device."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from scripts.bench import models
from scripts.bench.setting import FROZEN, Setting, build_optimizer, our_step, updating
from scripts.bench.step_memory import check_memory
from scripts.bench.timing import ROOT, table

LONGEST = 10  # operations that are listed
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def profile(setting: Setting) -> dict[str, Any]:
    """Profile one step at the first rate, with the optimizer's update: kernels on a GPU and operators on a CPU, longest
    first, and the number of waits for the GPU by line of Python (None on a CPU)."""
    frozen = FROZEN[setting.towers[0]]
    check_memory(setting, frozen)
    model = setting.trained(frozen)
    task, batch = models.our_task(model), models.build_batch(setting.shape)
    step = our_step(task, batch, setting.rates[0], after=updating(build_optimizer(model)))
    step()
    gpu = setting.device.type == "cuda"
    waits = _waits(step) if gpu else None
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * gpu]
    with torch.profiler.profile(activities=activities) as profiler:
        step()
    events = profiler.key_averages()
    rows, total = _longest(events, DeviceType.CUDA if gpu else DeviceType.CPU)
    print(f"step at rate {setting.rates[0]:g}: {total:.3f} s in operations\n{_table(rows)}")
    calls = sum(event.count for event in events if event.key in WAITS) if gpu else None
    print(f"synchronizations within the step: {calls}" if gpu else "synchronizations are counted on a GPU only")
    for line, count in (waits or {}).items():
        print(f"{count} x {line}")
    return {"operations": rows, "seconds": total, "synchronizations": calls, "synchronized_at": waits}


def _waits(step: Callable[[], None]) -> dict[str, int]:
    """How often the host waits for the device, by line of Python."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "synchroniz" in str(warning.message)]
    return dict(Counter(f"{_relative(warning.filename)}:{warning.lineno}" for warning in waits).most_common())


def _relative(name: str) -> str:
    return name.removeprefix(f"{ROOT}/").rpartition("site-packages/")[2] or Path(name).name


def _longest(events: Any, device: DeviceType) -> tuple[list[dict[str, Any]], float]:
    """The operations that take most of the device's time, and the seconds of all operations."""
    self_time = "self_cpu_time_total" if device == DeviceType.CPU else "self_device_time_total"
    events = [e for e in events if e.device_type == device and not getattr(e, "is_user_annotation", False)]
    total = sum(getattr(event, self_time) for event in events) / 1e6
    events = sorted(events, key=lambda event: -getattr(event, self_time))[:LONGEST]
    rows = [{"name": e.key, "calls": e.count, "seconds": getattr(e, self_time) / 1e6} for e in events]
    return [row | {"share": row["seconds"] / total} for row in rows], total


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [(row["name"][:60], row["calls"], f"{row['seconds']:.4f}", f"{row['share']:.1%}") for row in rows]
    return table(("operation", "calls", "seconds", "share"), cells)
