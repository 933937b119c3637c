"""Where a step's time goes and what it is spent on, measured without making the device wait within a step.

Spans: `data` (waiting for the loader), `vision` and `language_model` (forward), `backward`, `optimizer`. An engine's
communication is hidden within the last two (DeepSpeed also takes its optimizer step within `backward`), and the
recomputation of checkpointed layers within `backward`.
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
from train.metrics.memory import Memory
from train.task import StepOutput

T = TypeVar("T")
# Dense bf16 operations a second by the vendor's data sheet; a device that is not here has no MFU.
PEAK = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12}


@dataclass
class Meter:
    """Collects between two readings. `config` is the Hugging Face model's; `frozen` names towers."""

    device: torch.device
    config: Any
    memory: Memory
    frozen: Sequence[str] = ()
    lora: bool = False
    course: cost.StepSchedule = cost.ONE_VIEW
    _spans: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)
    _begin: float = field(default_factory=time.perf_counter)
    _steps: int = 0

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Times what runs inside."""
        begin = self._now()
        yield
        self._spans.setdefault(name, []).append((begin, self._now()))

    def watch(self, module: nn.Module, name: str) -> None:
        """Times every training call of a module as a span."""
        begins: list[Any] = []
        module.register_forward_pre_hook(lambda *_: begins.append(self._now()))

        def end(module: nn.Module, *_: Any) -> None:
            span = (begins.pop(), self._now())
            if module.training:
                self._spans.setdefault(name, []).append(span)

        module.register_forward_hook(end)

    def steps(self, items: Iterable[T]) -> Iterator[T]:
        """The items, waiting for each as the span `data`."""
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
        """What runs inside, saving or evaluation, is not training time."""
        begin = self._wait()
        yield
        self._begin += self._wait() - begin

    def restart(self) -> None:
        self._spans.clear()
        self._steps, self._begin = 0, self._wait()

    def read(self) -> tuple[float, dict[str, float]]:
        """(seconds since the last reading, seconds a step by span). Waits for the device, so not for every step."""
        elapsed, steps = self._wait() - self._begin, max(1, self._steps)
        spans = {f"time/{name}": sum(map(_seconds, found)) / steps for name, found in self._spans.items()}
        self.restart()
        return elapsed, {"time/step": elapsed / steps, **spans}

    def work(self, batch: Batch, out: StepOutput, before: int | None = None) -> dict[str, float]:
        """Patches seen and operations of forward and backward, of what is left of the batch in its views. `before`: the
        block of the vision tower before which tokens are dropped; None: after it.

        The survivors are taken to be shared alike among its samples, which concerns attention's part only.
        """
        grids = torch.cat([batch.image_grid_thw_I3, batch.video_grid_thw_V3]).tolist()
        lengths, views = batch.segment_N.bincount().tolist(), []
        for kept in out.kept:
            left = [round(length * kept / out.tokens) for length in lengths]
            views.append(cost.batch_work([(t, h, w) for t, h, w in grids], left, out.targets))
            if before is not None:
                views[-1] = cost.before_tower(self.config, views[-1], out.tokens - kept, before)
        course = replace(self.course, sees_once=before is None)
        done = cost.training_in_views(self.config, views, course, frozen=self.frozen, lora=self.lora)
        return {
            "patches": sum(view.patches for view in (views[:1] if course.sees_once else views)),
            "operations": done.total,
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
    """Operations a second that the device could do at best; None where it is unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK.items() if key in name), None)
