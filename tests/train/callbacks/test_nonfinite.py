"""Losses and gradients that are not finite: the step is skipped, the samples are named, nothing bad is saved."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate import Accelerator

from tests.faulty import mark, with_nan, with_overflow
from tests.runs import trained
from train.callbacks.nonfinite import Health, nan_grads_if_nonfinite
from train.checkpoint.checkpoint import complete
from train.checkpoint.storage import weights_are_finite


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_loss_that_is_not_finite_has_no_finite_gradient():
    for value in (1.0, float("inf"), float("nan")):
        x = torch.tensor(value, requires_grad=True)
        nan_grads_if_nonfinite(x).backward()
        assert torch.isfinite(x.grad) == (value == 1.0)


def test_weights_are_finite_only_if_all_are():
    model = torch.nn.Linear(3, 3)
    assert weights_are_finite(Accelerator(cpu=True), model)
    model.weight.data[1, 1] = float("inf")
    assert not weights_are_finite(Accelerator(cpu=True), model)


@pytest.mark.parametrize(
    ("losses", "norm", "dead"),
    [([6.9], 1.0, False), ([2.0], 0.0, True), ([2.0, 6.9], 1.0, True), ([2.0, 6.5, 6.9], 1.0, True)],
    ids=str,
)
def test_a_dead_model_is_reported_once(tmp_path, losses, norm, dead):
    health = Health(Accelerator(cpu=True), tmp_path / "health.jsonl", 5, 1000)
    for step, loss in enumerate(losses * 2):
        health.after_report(step, {"loss": loss, "grad_norm": norm})
    assert dead == (tmp_path / "health.jsonl").exists()
    if dead:
        (row,) = lines(tmp_path / "health.jsonl")
        assert "may have died" in row["warning"] and "ln(1000) = 6.908" in row["warning"]


@pytest.mark.slow
def test_a_model_of_nan_stops_the_run_and_is_not_saved(words, checkpoint, tmp_path):
    bad = with_nan(checkpoint("qwen2_5_vl"), tmp_path / "bad")
    with pytest.raises(
        ValueError, match=r"max_bad_steps=2: .* 2 steps in a row, up to step 2, was not finite"
    ) as error:
        trained(*words(f"model.path={bad}", "train.max_bad_steps=2", "train.save_every=1"))
    assert "\n" not in str(error.value)
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["loss"] is None and {"loss", "grad_norm"} <= set(row["nonfinite"]) for row in rows)
    assert not complete(tmp_path / "run" / "checkpoints")


@pytest.mark.slow
def test_one_bad_batch_is_skipped_named_and_survived(words, checkpoint, questions, tmp_path):
    bad = with_overflow(checkpoint("qwen2_5_vl"), tmp_path / "bad")
    mark(questions, 3)
    trained(*words(f"model.path={bad}", "engine.precision=fp32", "train.save_every=1", "train.keep=9"))
    (skipped,) = lines(tmp_path / "run" / "health.jsonl")
    assert "row3" in [name for batch in skipped["batches"] for name in batch["samples"]]
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if row["grad_norm"] is None] == [skipped["step"]]
    assert rows[-1]["loss"] < rows[0]["loss"]
    steps = {int(path.name[-8:]) for path in complete(tmp_path / "run" / "checkpoints")}
    assert steps == {1, 2, 3, 4} - {skipped["step"]}
