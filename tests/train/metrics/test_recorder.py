from __future__ import annotations

import json

import pytest
import torch
from accelerate import Accelerator

from data.types import Quarantined
from train.metrics.recorder import Recorder, rate_bucket
from train.metrics.sinks import Jsonl


@pytest.fixture
def recorder(tmp_path) -> Recorder:
    return Recorder(Accelerator(cpu=True), tmp_path, [Jsonl(tmp_path / "metrics.jsonl")])


def test_means_are_weighted_and_sums_are_sums(recorder, tmp_path):
    recorder.record("loss", torch.tensor(1.0), weight=1)
    recorder.record("loss", 4.0, weight=2)
    recorder.record("samples", 3)
    recorder.record("samples", 4)
    assert recorder.report(7, lr=0.5) == {"loss": 3.0, "samples": 7.0, "lr": 0.5}
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 7, "loss": 3.0, "samples": 7.0, "lr": 0.5}


def test_a_report_forgets_what_it_reported(recorder):
    recorder.record("loss", 1.0, weight=1)
    recorder.report(1)
    assert recorder.report(2) == {}


def test_a_mean_without_weight_is_left_out(recorder):
    recorder.record("loss", 1.0, weight=0)
    assert recorder.report(1) == {}


def test_quarantined_samples_are_counted_and_listed(recorder, tmp_path):
    recorder.quarantine([Quarantined("a", "a.mp4: no such file")])
    recorder.quarantine([])
    assert recorder.report(1) == {"quarantined": 1.0}
    assert json.loads((tmp_path / "quarantine.jsonl").read_text()) == {"id": "a", "reason": "a.mp4: no such file"}


@pytest.mark.parametrize(
    ("rate", "bucket"), [(0, "0.0-0.3"), (0.3, "0.3-0.6"), (0.59, "0.3-0.6"), (0.6, "0.6-0.9"), (0.95, "0.9-1.0")]
)
def test_rates_fall_into_thirds(rate, bucket):
    assert rate_bucket(rate) == bucket
