from __future__ import annotations

import json
import subprocess
import sys

import pytest

from train.config import TrackerConfig
from train.metrics.sinks import start_tensorboard, start_wandb

EVALUATION = {"eval/accuracy_at_0": 0.9, "eval/accuracy_at_0.5": 0.8, "eval/loss_at_0": 1.0}


@pytest.mark.slow
def test_tensorboard_shows_an_evaluation_as_a_picture_and_a_table(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = start_tensorboard(tmp_path, 0)
    sink.write(5, {"loss": 1.0})
    sink.write(10, EVALUATION)
    sink.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Images("eval/curve")] == [10]
    (text,) = events.Tensors("eval/table/text_summary")
    assert b"| 90.0 | 80.0 |" in text.tensor_proto.string_val[0]


@pytest.mark.slow
def test_an_offline_run_of_wandb_holds_the_curve_and_can_be_synchronised(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    sink = start_wandb(TrackerConfig(), tmp_path, {"seed": 0})
    sink.write(10, EVALUATION)
    sink.close()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (table,) = run.rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [[0.0, 0.9], [0.5, 0.8]]
    assert len(list(run.rglob("*.png"))) == 1 and len(list(run.glob("*.wandb"))) == 1
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(run)]
    asked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "Would sync 1 run(s)" in asked.stdout + asked.stderr
