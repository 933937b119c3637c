"""Any number of ranks takes the same steps, from the start or resumed in the middle."""

from __future__ import annotations

import shutil

import pytest

from tests.faults.trajectories import assert_same_trajectory
from tests.runs import ended, started
from train.checkpoint.checkpoint import complete


def run(*words: str, ranks: int) -> None:
    code, printed = ended(started(*words, ranks=ranks), timeout=600)
    assert code == 0, printed[-3000:]


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_a_run_resumes_on_another_number_of_ranks(line, tmp_path, engine):
    words = [f"engine={engine}", "train.steps=6", "train.save_every=3", "train.keep=9", "resume=auto"]
    words += ["optim.weight_decay=0.1", "optim.merger_lr=5e-5"]
    for ranks, others in ((2, 1), (1, 2)):
        whole, resumed = tmp_path / f"on{ranks}", tmp_path / f"from{ranks}"
        run(*line(*words, f"train.accumulation={2 // ranks}", run_dir=whole), ranks=ranks)
        shutil.copytree(whole, resumed)
        shutil.rmtree(complete(resumed / "checkpoints")[-1])
        run(*line(*words, f"train.accumulation={2 // ranks}", run_dir=resumed), ranks=others)
        assert_same_trajectory(whole, resumed, rel=1e-5)
    assert_same_trajectory(tmp_path / "on1", tmp_path / "on2", rel=1e-5)


PARTS = {  # name: (engine, ranks and last step of each part)
    "ddp": ("ddp", [(2, 2), (1, 4), (1, 7), (2, 10)]),
    "zero2": ("zero2", [(2, 2), (1, 4), (1, 7), (2, 10)]),
    "from_one": ("ddp", [(1, 2), (2, 4), (2, 6), (1, 8)]),
}


@pytest.mark.parametrize("name", PARTS)
def test_one_command_resumes_on_any_sequence_of_ranks(line, tmp_path, name):
    engine, parts = PARTS[name]
    words = [f"engine={engine}", "train.save_every=2", "train.keep=9", f"train.accumulation={3 - parts[0][0]}"]
    for ranks, steps in parts:
        run(*line(*words, f"train.steps={steps}", "resume=auto", run_dir=tmp_path / "resumed"), ranks=ranks)
    run(*line(*words, f"train.steps={parts[-1][1]}", run_dir=tmp_path / "whole"), ranks=parts[0][0])
    assert len(complete(tmp_path / "resumed" / "checkpoints")) >= parts[-1][1] // 2
    assert_same_trajectory(tmp_path / "whole", tmp_path / "resumed", rel=1e-5)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_two_hundred_mixed_steps_under_zero3_are_those_of_one_process(line, tmp_path, family):
    words = ["train.steps=200", "train.save_every=200", "optim.lr=1e-5"]
    run(*line(*words, "engine=none", "train.accumulation=2", run_dir=tmp_path / "one", family=family), ranks=1)
    run(*line(*words, "engine=zero3", "train.accumulation=1", run_dir=tmp_path / "two", family=family), ranks=2)
    assert_same_trajectory(tmp_path / "one", tmp_path / "two", rel=1e-5)
