"""Two processes on the CPU, under every engine: the same loss as one process, saved and exported."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForImageTextToText

from scripts import export
from tests.runs import trained
from tests.train.test_run import assert_same_weights, metrics

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("distributed")]
EXTENDED = pytest.mark.extended
FIXED = ["rate=constant", "rate.rate=0.5", "train.steps=3", "optim.lr=1e-4", "engine.precision=fp32"]

BEFORE = ["method=pixel_delta", "method.prune_at=input", "model.gradient_checkpointing=true"]


@pytest.mark.parametrize(
    ("engine", "family", "more"),
    [
        *((engine, "qwen2_5_vl", []) for engine in ("ddp", "zero1", "zero2", "zero3")),
        pytest.param("zero3", "qwen3_5_moe", [], marks=EXTENDED),
        pytest.param("zero3", "nemotron_h_omni", [], marks=EXTENDED),
        pytest.param("zero3", "qwen2_5_vl", BEFORE, id="zero3-qwen2_5_vl-before_tower"),
        *(
            pytest.param("zero3", family, BEFORE, id=f"zero3-{family}-before_tower", marks=EXTENDED)
            for family in ("qwen3_vl", "qwen3_5_moe")
        ),
        pytest.param("zero3", "qwen2_5_vl", ["method=drawn"], id="zero3-qwen2_5_vl-before_tower_drawn", marks=EXTENDED),
    ],
)
def test_two_ranks_train_as_one_process_does(words, two_ranks, tmp_path, engine, family, more):
    trained(*words(*FIXED, *more, "train.accumulation=4", family=family, run_dir=tmp_path / "one"))
    own = (*more, "train.accumulation=2", f"engine={engine}")
    two_ranks(*words(*FIXED, *own, family=family, run_dir=tmp_path / "two"))
    for name in ("loss", "grad_norm"):
        assert metrics(tmp_path / "two", name) == pytest.approx(metrics(tmp_path / "one", name), rel=1e-3)
    export.main(export.Options(run=str(tmp_path / "two"), out=str(tmp_path / "out")))
    AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert_same_weights(tmp_path / "one", tmp_path / "two", atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("engine", [pytest.param("ddp", marks=EXTENDED), "zero3"])
def test_two_ranks_draw_the_adapters_and_drop_out_what_one_process_does(words, two_ranks, tmp_path, engine):
    lora = ["model.lora.r=4", "model.lora.dropout=0.5"]
    trained(*words(*FIXED, *lora, "train.accumulation=4", run_dir=tmp_path / "one"))
    two_ranks(*words(*FIXED, *lora, "train.accumulation=2", f"engine={engine}", run_dir=tmp_path / "two"))
    assert metrics(tmp_path / "two", "loss") == pytest.approx(metrics(tmp_path / "one", "loss"), rel=1e-4)


@pytest.mark.parametrize(
    ("engine", "more"),
    [
        pytest.param("ddp", [], marks=EXTENDED, id="ddp"),
        pytest.param("zero3", [], id="zero3"),
        pytest.param("zero3", [*BEFORE[:2], "rate.rate=0"], marks=EXTENDED, id="zero3-input"),
    ],
)
def test_two_ranks_train_views_as_one_process_does(words, two_ranks, tmp_path, engine, more):
    views = [*FIXED, "train.views=2", "train.anchor_rate=0", "model.freeze=[]", *more]
    trained(*words(*views, "train.accumulation=4", run_dir=tmp_path / "one"))
    two_ranks(*words(*views, "train.accumulation=2", f"engine={engine}", run_dir=tmp_path / "two"))
    for name in ("loss", "grad_norm"):
        assert metrics(tmp_path / "two", name) == pytest.approx(metrics(tmp_path / "one", name), rel=1e-3)
    assert_same_weights(tmp_path / "one", tmp_path / "two", atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("engine", "more"),
    [
        pytest.param("zero3", ["train.distill.train_teacher=false"], marks=EXTENDED, id="zero3-alone"),
        pytest.param("zero3", ["model.lora.r=4", "train.distill.teacher=base"], id="zero3-base"),
        pytest.param("ddp", ["model.lora.r=4", "train.distill.base_weight=0.5"], marks=EXTENDED, id="ddp-base"),
    ],
)
def test_two_ranks_distill_as_one_process_does(words, two_ranks, tmp_path, engine, more):
    views = [*FIXED, "train.views=2", "train.anchor_rate=0", "train.distill.weight=1", *more]
    trained(*words(*views, "train.accumulation=4", run_dir=tmp_path / "one"))
    two_ranks(*words(*views, "train.accumulation=2", f"engine={engine}", run_dir=tmp_path / "two"))
    source = "base" if "train.distill.teacher=base" in more else "view"
    for name in ("loss", "grad_norm", f"divergence/{source}"):
        assert metrics(tmp_path / "two", name) == pytest.approx(metrics(tmp_path / "one", name), rel=1e-3, abs=1e-6)


def test_zero2_resumes_exactly(words, two_ranks, tmp_path):
    def run(name: str, steps: int, *more: str) -> None:
        two_ranks(
            *words(
                "engine=zero2",
                "engine.precision=bf16",
                "train.save_every=2",
                f"train.steps={steps}",
                *more,
                run_dir=tmp_path / name,
            )
        )

    run("whole", 4, "optim.warmup=2", "optim.final_lr=1.0")  # the rate must not depend on the number of steps
    run("broken", 2, "optim.warmup=2", "optim.final_lr=1.0")
    run("broken", 4, "optim.warmup=2", "optim.final_lr=1.0", "resume=auto")
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")


def test_ranks_that_share_parameters_generate_together(words, two_ranks, questions, tmp_path):
    """One of three held-out answers is generated, so that a rank has none of its own to generate."""
    rows = [json.loads(line) for line in questions.read_text().splitlines()[:3]]
    rows[0] |= {"metric": "f1", "answers": ["5"]}
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [*FIXED[:2], "train.steps=1", f"data.eval={held_out}", "data.audit=false", "eval.rates=[0,0.5]"]
    own += ["eval.new_tokens=4"]
    trained(*words(*own, run_dir=tmp_path / "one"))
    two_ranks(*words(*own, "train.accumulation=1", "engine=zero3", run_dir=tmp_path / "two"))
    for name in ("eval/accuracy_at_0.5", "eval/loss_at_0.5"):
        assert metrics(tmp_path / "two", name) == pytest.approx(metrics(tmp_path / "one", name), rel=1e-3)
