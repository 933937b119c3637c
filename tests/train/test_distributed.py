"""Two processes on the CPU, under every engine: the same loss as one process, saved and exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from scripts import export
from tests.runs import cut_off, rows, trained
from tests.train.cost.test_dry_run import assert_same_run
from tests.train.test_run import assert_same_weights, metrics

pytestmark = pytest.mark.slow
EXTENDED = pytest.mark.extended
FIXED = ["rate=constant", "rate.rate=0.5", "train.steps=2", "optim.lr=1e-4"]
BEFORE = ["method=pixel_delta", "method.prune_at=input", "model.gradient_checkpointing=true"]


ENGINES = ["ddp", "zero1", "zero2", "zero3"]


@pytest.fixture(scope="module")
def one(shared_words) -> Path:
    """A run of one process."""
    return Path(trained(*shared_words(*FIXED, "train.accumulation=4")).run_dir)


@pytest.fixture(scope="module")
def two(shared_words, ranks) -> Callable[[str], Path]:
    """The same steps on two ranks, by engine."""

    @cache
    def of(engine: str) -> Path:
        words = shared_words(*FIXED, "train.accumulation=2", f"engine={engine}")
        ranks.train(*words)
        return run_dir(words)

    return of


def run_dir(words: list[str]) -> Path:
    return Path(next(word.partition("=")[2] for word in words if word.startswith("run_dir=")))


def assert_trained_alike(one: Path, two: Path) -> None:
    for name in ("loss", "grad_norm"):
        assert metrics(two, name) == pytest.approx(metrics(one, name), rel=1e-3)
    assert_same_weights(one, two, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_train_as_one_process_does(one, two, engine):
    assert_trained_alike(one, two(engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_what_two_ranks_trained_is_exported(two, tmp_path, engine):
    export.main(export.Options(run=str(two(engine)), out=str(tmp_path / "out")))
    AutoModelForImageTextToText.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("engine", ENGINES)
def test_training_mode_shows_in_the_meters_under_every_engine(two, engine):
    trained_rows = [row for row in rows(two(engine)) if "loss" in row]
    assert trained_rows and all({"time/vision", "time/language_model"} <= row.keys() for row in trained_rows)


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_a_dry_run_changes_nothing_on_two_ranks(words, two_ranks, tmp_path, engine):
    for name in ("off", "dry_run"):
        two_ranks(*words(f"engine={engine}", f"preflight={name}", "train.steps=2", run_dir=tmp_path / name))
    assert_same_run(tmp_path / "off", tmp_path / "dry_run")


@pytest.mark.parametrize(
    ("family", "more"),
    [
        pytest.param("qwen3_5_moe", [], marks=EXTENDED),
        pytest.param("nemotron_h_omni", [], marks=EXTENDED),
        pytest.param("qwen2_5_vl", BEFORE, id="qwen2_5_vl-before_tower"),
        *(
            pytest.param(family, BEFORE, id=f"{family}-before_tower", marks=EXTENDED)
            for family in ("qwen3_vl", "qwen3_5_moe")
        ),
        pytest.param("qwen2_5_vl", ["method=drawn"], id="qwen2_5_vl-before_tower_drawn", marks=EXTENDED),
    ],
)
def test_two_ranks_of_zero3_train_as_one_process_does(words, two_ranks, tmp_path, family, more):
    trained(*words(*FIXED, *more, "train.accumulation=4", family=family, run_dir=tmp_path / "one"))
    own = (*more, "train.accumulation=2", "engine=zero3")
    two_ranks(*words(*FIXED, *own, family=family, run_dir=tmp_path / "two"))
    assert_trained_alike(tmp_path / "one", tmp_path / "two")
    export.main(export.Options(run=str(tmp_path / "two"), out=str(tmp_path / "out")))
    AutoModelForImageTextToText.from_pretrained(tmp_path / "out")


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
    assert_trained_alike(tmp_path / "one", tmp_path / "two")


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
    more = ["engine=zero2", "engine.precision=bf16", "train.save_every=1", "train.steps=2"]
    two_ranks(*words(*more, run_dir=tmp_path / "whole"))
    cut_off(tmp_path / "whole", tmp_path / "broken", 1)
    two_ranks(*words(*more, "resume=auto", run_dir=tmp_path / "broken"))
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")


def test_ranks_that_share_parameters_generate_together(words, two_ranks, questions, tmp_path):
    """One of three held-out answers is generated, so that a rank has none of its own to generate."""
    asked = [json.loads(line) for line in questions.read_text().splitlines()[:3]]
    asked[0] |= {"metric": "f1", "answers": ["5"]}
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in asked))
    own = [*FIXED[:2], "train.steps=1", f"data.eval={held_out}", "data.audit=false", "eval.rates=[0.5]"]
    own += ["eval.new_tokens=2"]
    trained(*words(*own, run_dir=tmp_path / "one"))
    two_ranks(*words(*own, "train.accumulation=1", "engine=zero3", run_dir=tmp_path / "two"))
    for name in ("eval/accuracy_at_0.5", "eval/loss_at_0.5"):
        assert metrics(tmp_path / "two", name) == pytest.approx(metrics(tmp_path / "one", name), rel=1e-3)
