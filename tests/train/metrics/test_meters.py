"""Spans add up to what was done, and what is left out is left out."""

import time

import pytest
import torch
from torch import nn

from train.metrics.memory import watch
from train.metrics.meters import Meter


@pytest.fixture
def meter():
    return Meter(torch.device("cpu"), None, watch(torch.device("cpu")))


def sleepy(seconds):
    time.sleep(seconds)
    return seconds


def test_spans_are_seconds_a_step(meter):
    meter.restart()
    for _ in meter.steps(map(sleepy, [0.02, 0.02])):
        with meter.span("backward"):
            time.sleep(0.01)
        with meter.span("backward"):
            time.sleep(0.01)
    elapsed, spans = meter.read()
    assert spans["time/data"] >= 0.02 and spans["time/backward"] >= 0.02
    assert spans["time/step"] == pytest.approx(elapsed / 2) and elapsed >= 0.08
    assert spans["time/data"] + spans["time/backward"] <= spans["time/step"]


def test_pauses_and_evaluation_are_no_training_time(meter):
    module = nn.Linear(2, 2)
    meter.watch(module, "vision")
    meter.restart()
    with meter.paused():
        module.eval()(torch.ones(1, 2))
        time.sleep(0.05)
    elapsed, spans = meter.read()
    assert elapsed < 0.04 and "time/vision" not in spans
    module.train()(torch.ones(1, 2))
    assert meter.read()[1]["time/vision"] > 0
