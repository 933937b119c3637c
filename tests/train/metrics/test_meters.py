"""Spans add up to what was done, and what is left out is left out."""

import time

import pytest
import torch
from torch import nn

from tests.evs.models import MIXED, prompts, tiny_model
from train.cost.peak_memory import watch
from train.metrics.meters import Meter
from train.task import StepOutput


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


def test_the_tower_reads_a_batch_once_for_all_views_unless_tokens_are_dropped_before_it():
    batch, zero = prompts("qwen2_5_vl", MIXED), torch.zeros(())
    patches, tokens = len(batch.pixel_values) + len(batch.pixel_values_videos), len(batch.input_ids_N)
    out = StepOutput(zero, zero, zero, targets=9, tokens=tokens, kept=(tokens, tokens - 8), divergences={})
    meter = Meter(torch.device("cpu"), tiny_model("qwen2_5_vl").config, watch(torch.device("cpu")))
    after, before = meter.work(batch, out), meter.work(batch, out, before=0)
    assert (after["patches"], before["patches"]) == (patches, 2 * patches - 4 * 8)
    assert after["operations"] < before["operations"]
