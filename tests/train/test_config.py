"""Mistakes are reported before anything is built, in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.runs import composed
from train.checks import check
from train.model import check_attention
from train.plugins import build_methods, build_rates
from train.run import main

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(p.stem for p in (ROOT / "configs" / "experiment").glob("*.yaml"))
METHODS = sorted(p.stem for p in (ROOT / "configs" / "method").glob("*.yaml"))
RATES = sorted(p.stem for p in (ROOT / "configs" / "rate").glob("*.yaml"))
CHOOSING = [name for name in EXPERIMENTS if "/method" in (ROOT / f"configs/experiment/{name}.yaml").read_text()]


@pytest.mark.parametrize("rate", RATES)
def test_every_rate_composes_and_builds(words, rate):
    build_rates(composed(*words(f"rate={rate}")).rate)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_composes_and_builds(words, method):
    config = composed(*words(f"method={method}"))
    expected = list(config.method.get("methods", [method.removesuffix("_unrounded")]))
    assert [each.name for each in build_methods(config.method)] == expected


@pytest.mark.parametrize("several", [{}, [{"_target_": "evs.FrameDelta"}]])
def test_methods_to_draw_from_have_names(several):
    with pytest.raises(ValueError, match=r"method.methods=.* does not map names to methods: write it like"):
        build_methods({"methods": several})


@pytest.mark.parametrize("method", METHODS)
def test_an_experiment_that_chooses_a_method_takes_any_other(method):
    assert CHOOSING
    for experiment in CHOOSING:
        words = ("model.path=x", "data.train=x.jsonl", "train.steps=1", f"method={method}")
        assert build_methods(composed(f"+experiment={experiment}", *words).method)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_a_short_diff_with_a_header(experiment):
    text = (Path(__file__).parents[2] / "configs" / "experiment" / f"{experiment}.yaml").read_text()
    assert len([line for line in text.splitlines() if line and not line.startswith("#")]) <= 30
    assert f"+experiment={experiment}" in text and "Hardware:" in text and "Expect:" in text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.freeze=[vision,merger,language]", "leaves nothing to train"),
        ("data.eval_fraction=1", "data.eval_fraction=1.0 must be above 0 and below 1"),
        ("data.columns.query=q", "data.columns names query: give messages, or query and response"),
        ("engine.precision=fp8", "engine.precision=fp8 is unknown: use one of bf16, fp32"),
        ("train.patch_budget=9", "train.patch_budget needs train.token_budget"),
    ],
)
def test_a_wrong_value_is_named_with_its_remedy(words, word, message):
    with pytest.raises(ValueError, match=message) as error:
        check(composed(*words(word)))
    assert "\n" not in str(error.value)


def test_offloading_without_recomputed_layers_is_refused(words):
    with pytest.raises(ValueError, match=r"offload_activations=true .* set model.gradient_checkpointing=true"):
        check(composed(*words("train.offload_activations=true", "model.gradient_checkpointing=false")))


def test_a_key_added_with_plus_is_checked_too(words):
    with pytest.raises(ValueError, match=r"stepz.*did you mean 'train.steps'|Key 'stepz'"):
        composed(*words("+train.stepz=3"))


def test_missing_keys_are_listed_together():
    with pytest.raises(ValueError, match=r"missing data.train, model.path, train.steps: add data.train=\.\.\."):
        composed()


def test_a_rate_outside_the_interval_is_named(words):
    with pytest.raises(ValueError, match=r"pruning rate 1.2 is outside \[0, 1\)"):
        build_rates(composed(*words("rate.high=1.2")).rate)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_option_that_needs_a_gpu_says_so():
    with pytest.raises(ValueError, match=r"flash_attention_2 needs a CUDA GPU .* use model\.attention=sdpa"):
        check_attention("flash_attention_2")


@pytest.mark.parametrize(
    ("more", "folder"),
    [([], "runs/uptrain"), (["+experiment=demo"], "runs/demo"), (["+experiment=demo", "run_dir=x"], "x")],
)
def test_the_run_dir_is_named_after_the_experiment(monkeypatch, capsys, more, folder):
    words = [*more, "train.steps=1", "data.train=gone.jsonl", "--cfg=job", "--resolve"]
    monkeypatch.setattr(sys, "argv", ["train/run.py", *words])
    main()
    assert f"run_dir: {folder}\n" in capsys.readouterr().out
