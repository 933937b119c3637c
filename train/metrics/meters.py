"""Measures the time and the operations of steps, without synchronizing the device within a step.

Spans: `data` (waiting for the loader), `vision` and `language_model` (forward), `backward`, `optimizer`. Communication
is part of the last two, and the recomputation of checkpointed layers is part of `backward`. DeepSpeed also takes its
optimizer step within `backward`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn

from data.types import Batch
from train.cost import operations as cost
from train.cost.peak_memory import Memory
from train.task import StepOutput

T = TypeVar("T")
# Dense bf16 operations per second by the vendor's data sheet. No MFU is reported for other devices.
PEAK = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12}


@dataclass
class Meter:
    """Collects spans between two calls of `read`. `config` is the Hugging Face model's; `frozen` names towers."""

    device: torch.device
    config: Any
    memory: Memory
    frozen: Sequence[str] = ()
    lora: bool = False
    schedule: cost.StepSchedule = cost.ONE_VIEW
    _spans: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)
    _begin: float = field(default_factory=time.perf_counter)
    _steps: int = 0

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time the code inside as span `name`."""
        begin = self._now()
        yield
        self._spans.setdefault(name, []).append((begin, self._now()))

    def watch(self, module: nn.Module, name: str) -> None:
        """Time every forward pass of a module in training mode as span `name`."""
        begins: list[Any] = []
        module.register_forward_pre_hook(lambda *_: begins.append(self._now()))

        def end(module: nn.Module, *_: Any) -> None:
            span = (begins.pop(), self._now())
            if module.training:
                self._spans.setdefault(name, []).append(span)

        module.register_forward_hook(end)

    def steps(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and time the wait for each as span `data`."""
        iterator, end = iter(items), object()
        while True:
            with self.span("data"):
                item: Any = next(iterator, end)
            if item is end:
                return
            self._steps += 1
            yield item

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time spent inside, as when saving or evaluating."""
        begin = self._wait()
        yield
        self._begin += self._wait() - begin

    def restart(self) -> None:
        """Discard the spans and start measuring from now."""
        self._spans.clear()
        self._steps, self._begin = 0, self._wait()

    def read(self) -> tuple[float, dict[str, float]]:
        """(seconds since the last call, seconds per step by span). Synchronizes the device."""
        elapsed, steps = self._wait() - self._begin, max(1, self._steps)
        spans = {f"time/{name}": sum(map(_seconds, times)) / steps for name, times in self._spans.items()}
        self.restart()
        return elapsed, {"time/step": elapsed / steps, **spans}

    def work(self, batch: Batch, out: StepOutput, before: int | None = None) -> dict[str, float]:
        """The patches that the vision tower reads and the operations of forward and backward, over all views.

        `before` is the block of the vision tower before which tokens are dropped; None drops them after the tower.
        All samples are assumed to keep the same fraction of their tokens, which affects the count of attention only.
        """
        grids = torch.cat([batch.image_grid_thw_I3, batch.video_grid_thw_V3]).tolist()
        lengths, views = batch.segment_N.bincount().tolist(), []
        for kept in out.kept:
            left = [round(length * kept / out.tokens) for length in lengths]
            views.append(cost.batch_work([(t, h, w) for t, h, w in grids], left, out.targets))
            if before is not None:
                views[-1] = cost.before_tower(self.config, views[-1], out.tokens - kept, before)
        schedule = replace(self.schedule, encodes_once=before is None)
        operations = cost.training_in_views(self.config, views, schedule, frozen=self.frozen, lora=self.lora)
        return {
            "patches": sum(view.patches for view in (views[:1] if schedule.encodes_once else views)),
            "operations": operations.total,
        }

    def _wait(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _seconds(span: tuple[Any, Any]) -> float:
    begin, end = span
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000


def peak_operations(device: torch.device) -> float | None:
    """Peak operations per second of the device; None if unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK.items() if key in name), None)
