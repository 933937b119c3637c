"""Every benchmark runs at the tiny shape and writes its figures; the ideal is what the operations say."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from scripts import benchmark
from scripts.bench.models import SHAPES, build_shape, model_config, work
from scripts.bench.timing import Timed, alternate
from train.cost import operations as cost


@pytest.mark.slow
@pytest.mark.parametrize("what", ["step", "prefill"])
def test_it_runs_and_writes_its_figures(what, tmp_path, monkeypatch):
    out = tmp_path / "figures.json"
    words = [what, "shape=tiny", "rates=[0,0.75]", "rounds=1", f"out={out}"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words])
    benchmark.main()
    figures = json.loads(out.read_text())
    assert figures["machine"]["torch"] == torch.__version__ and figures["result"]


def test_an_unknown_benchmark_or_shape_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "stepp"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "use one of step, prefill" in capsys.readouterr().err
    with pytest.raises(ValueError, match="shape=large is unknown: use one of tiny, small"):
        build_shape("large")


def test_ratios_are_taken_round_by_round():
    ours, stock = Timed((1.0, 2.0, 4.0)), Timed((2.0, 8.0, 8.0))
    assert ours.ratio_to(stock) == (2.0, 2.0, 4.0)
    assert list(alternate({"a": lambda: None, "b": lambda: None}, rounds=3)) == ["a", "b"]


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_whole_and_the_small_one_keeps_the_proportions_of_the_large(name):
    config = model_config(SHAPES[name])
    done = cost.training(config, work(SHAPES[name], 0.0))
    if name in ("small", "qwen2_5_vl_7b"):
        assert 0.3 < (done.vision + done.merger) / (done.language + done.head) < 0.4
    text = config.get_text_config()
    assert sum(text.rope_parameters["mrope_section"]) == text.hidden_size // text.num_attention_heads // 2
