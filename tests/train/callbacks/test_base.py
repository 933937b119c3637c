"""Callbacks of the training loop: which hooks are called, when, and with what."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tests.runs import composed
from train.build import build_run
from train.callbacks.base import Callback, MicroBatch, StepResult
from train.loop import fit


class Log(Callback):
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def after_micro_batch(self, done: MicroBatch) -> None:
        self.calls.append(("micro-batch", done.step, done.index, len(done.request.rates), done.output.targets > 0))

    def after_step(self, result: StepResult) -> None:
        self.calls.append(("step", result.step, len(result.losses), math.isfinite(result.norm)))

    def after_report(self, step: int, values: dict[str, float]) -> None:
        self.calls.append(("report", step, values["samples"]))


@pytest.mark.slow
def test_a_callback_is_called_after_every_micro_batch_step_and_report(words):
    run, log = build_run(composed(*words("train.steps=2", "train.log_every=2", "train.save_every=9"))), Log()
    assert run is not None
    fit(replace(run, callbacks=[*run.callbacks, log]))
    micro_batches = [[("micro-batch", step, index, 1, True) for index in range(2)] for step in (1, 2)]
    first, second = ([*calls, ("step", step, 2, True)] for step, calls in enumerate(micro_batches, 1))
    assert log.calls == [*first, *second, ("report", 2, 4)]
