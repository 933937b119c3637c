"""Ranks that share every batch (engine.sequence_parallel) train as one process does, and resume as each other."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.faults.trajectories import kill_all
from tests.runs import ROOT, ended, reached, started, trained
from tests.train.test_run import assert_same_weights, metrics, weights
from train.checkpoint.checkpoint import complete

pytestmark = pytest.mark.slow
EXTENDED = pytest.mark.extended
FIXED = ["train.steps=3", "optim.lr=1e-4", "train.batch_size=2", "model.freeze=[]", "tracker.batches=true"]
SHARED = ["engine=ddp", "engine.sequence_parallel=2"]
PER_VIDEO = ["train.rate_per_video=true"]
VIEWS = ["train.views=2", "train.anchor_rate=0"]
GLM = ["data.max_pixels=null", "data.total_pixels=75264"]  # it limits the pixels of a whole clip
BUDGET = ["train.batch_size=1", "train.token_budget=2000"]


@pytest.mark.parametrize(
    ("ranks", "size", "families"),
    [
        (2, 2, ["qwen2_5_vl"]),
        pytest.param(2, 2, ["qwen3_vl", "glm4v", "qwen3_vl_moe", "glm4v_moe"], marks=EXTENDED),
        pytest.param(4, 4, [], marks=EXTENDED),
        pytest.param(4, 2, [], marks=EXTENDED),
    ],
)
def test_losses_and_gradients_of_a_group_are_those_of_one_process(ranks, size, families):
    """Ten steps at rates 0, 0.5, 0.9 and one per video, with images, text only and views; see sequence_ranks."""
    words = [sys.executable, "-m", "tests.evs.sequence_ranks", str(ranks), str(size), *families]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("family", "more"),
    [
        pytest.param("qwen2_5_vl", ["engine=zero3", *PER_VIDEO], id="zero3"),
        pytest.param("qwen3_vl", ["engine=ddp", *VIEWS], marks=EXTENDED, id="ddp-views"),
        pytest.param("glm4v", ["engine=zero1", *BUDGET, *GLM], marks=EXTENDED, id="zero1-budget"),
        pytest.param(
            "qwen3_vl", ["engine=zero3", "rate=constant", "rate.rate=0.9"], marks=EXTENDED, id="zero3-qwen3_vl"
        ),
        pytest.param("glm4v", ["engine=zero3", *PER_VIDEO, *GLM], marks=EXTENDED, id="zero3-glm"),
        pytest.param(
            "qwen2_5_vl",
            ["engine=zero2", "model.freeze=[]", "model.lora.r=4", "model.lora.dropout=0", *VIEWS]
            + ["train.distill.weight=1", "train.distill.teacher=base"],
            marks=EXTENDED,
            id="zero2-lora-distillation",
        ),
        pytest.param(
            "qwen2_5_vl", ["engine=ddp", "method=pixel_delta", "method.prune_at=input"], marks=EXTENDED, id="ddp-input"
        ),
        pytest.param(
            "qwen3_vl", ["engine=zero3", "train.offload_activations=true"], marks=EXTENDED, id="zero3-offloaded"
        ),
    ],
)
def test_a_group_trains_as_one_process_does(words, two_ranks, tmp_path, family, more):
    own = [word for word in more if not word.startswith(("engine=", "train.offload_activations="))]
    trained(*words(*FIXED, *own, family=family, run_dir=tmp_path / "one"))
    two_ranks(*words(*FIXED, *more, "engine.sequence_parallel=2", family=family, run_dir=tmp_path / "two"))
    for name in (
        "loss",
        "grad_norm",
        "kept",
        "samples",
        "tokens/before",
        "tokens/after",
        "operations",
        "token_accuracy",
    ):
        assert metrics(tmp_path / "two", name) == pytest.approx(metrics(tmp_path / "one", name), rel=2e-5), name
    for name in ("batches.jsonl", "quarantine.jsonl"):
        assert lines(tmp_path / "two" / name) == lines(tmp_path / "one" / name)
    if "model.lora.r=4" not in more:
        assert_same_weights(tmp_path / "one", tmp_path / "two", atol=2e-4, rtol=1e-3)


def lines(path):
    return path.read_text() if path.exists() else ""


@EXTENDED
@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_a_run_resumes_with_groups_of_another_size(words, two_ranks, tmp_path, engine):
    """A global step has two micro-batches: a group of two ranks takes both, or two ranks take one each."""
    more = [*FIXED, "train.save_every=2", "optim.warmup=0", "optim.final_lr=1.0"]
    groups = [*more, f"engine={engine}", "engine.sequence_parallel=2", "train.accumulation=2"]
    alone = [*more, f"engine={engine}", "train.accumulation=1"]
    trained(*words(*more, "train.accumulation=2", "train.steps=6", run_dir=tmp_path / "one"))
    two_ranks(*words(*groups, "train.steps=2", run_dir=tmp_path / "two"))
    two_ranks(*words(*alone, "train.steps=4", "resume=auto", run_dir=tmp_path / "two"))
    two_ranks(*words(*groups, "train.steps=6", "resume=auto", run_dir=tmp_path / "two"))
    assert metrics(tmp_path / "two", "loss") == pytest.approx(metrics(tmp_path / "one", "loss"), rel=2e-5)
    assert lines(tmp_path / "two" / "batches.jsonl") == lines(tmp_path / "one" / "batches.jsonl")
    assert_same_weights(tmp_path / "one", tmp_path / "two", atol=2e-4, rtol=1e-3)


def assert_shards_are_halves(run_dir):
    """ZeRO shares optimizer states, and so weights and gradients, over all ranks, those of a group included."""
    size = 4 * sum(tensor.numel() for tensor in weights(run_dir).values())  # float32
    shards = [path.stat().st_size for path in complete(run_dir / "checkpoints")[-1].rglob("*_optim_states.pt")]
    assert len(shards) == 2
    assert shards == pytest.approx([3 * size / 2] * 2, rel=0.1)  # the weights and two moments


@EXTENDED
def test_a_killed_group_resumes_bit_for_bit(words, two_ranks, tmp_path):
    more = [*FIXED, "engine=zero3", "engine.sequence_parallel=2", "train.steps=16", "train.save_every=2"]
    more += ["data.workers=1", *PER_VIDEO]
    two_ranks(*words(*more, run_dir=tmp_path / "whole"))
    assert_shards_are_halves(tmp_path / "whole")
    killed = started(*words(*more, run_dir=tmp_path / "killed"), ranks=2)
    reached(killed, tmp_path / "killed", 3)
    kill_all(killed.pid)
    ended(killed)
    assert len(metrics(tmp_path / "killed", "loss")) < 16
    two_ranks(*words(*more, "resume=auto", run_dir=tmp_path / "killed"))
    assert metrics(tmp_path / "killed", "loss") == metrics(tmp_path / "whole", "loss")
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
