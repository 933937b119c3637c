"""Every benchmark runs at the tiny shape and writes its figures; the ideal is what the operations say."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from scripts import benchmark
from scripts.bench.models import SHAPES, build_shape, missing_kernel, model_config, work
from scripts.bench.timing import Timed, alternate
from train.cost import operations as cost


def figures_of(monkeypatch, out, *words: str) -> dict:
    """What `python scripts/benchmark.py WORDS` writes."""
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words, f"out={out}"])
    benchmark.main()
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize("words", [["step", "towers=[frozen]"], ["prefill"]], ids=["step", "prefill"])
def test_it_runs_and_writes_its_figures(words, tmp_path, monkeypatch):
    figures = figures_of(monkeypatch, tmp_path / "figures.json", *words, "shape=tiny", "rates=[0.75]", "rounds=1")
    assert figures["machine"]["torch"] == torch.__version__ and figures["result"]


@pytest.mark.slow
@pytest.mark.extended
def test_a_step_is_broken_down_by_part_and_its_peak_memory_stands_next_to_the_forecast(tmp_path, monkeypatch):
    words = ["step", "shape=tiny", "rates=[0,0.75]", "rounds=1", "towers=[frozen]", "extras=[]"]
    result = figures_of(monkeypatch, tmp_path / "figures.json", *words)["result"]
    assert list(result) == ["frozen"] and "stock_s" not in result["frozen"]
    for place in ("after", "before"):
        for row in result["frozen"][place].values():
            parts = row["spans_s"]
            assert set(parts) == {"vision", "language_model", "head", "backward", "optimizer"}
            assert all(seconds > 0 for seconds in parts.values())
            assert row["peak_gib"] > 0 and row["forecast_gib"] > 0 and row["tokens_per_s"] > 0


@pytest.mark.slow
@pytest.mark.extended
def test_ranks_that_share_a_clip_need_less_memory_and_exchange_survivors_only(tmp_path, monkeypatch):
    words = ["long", "shape=tiny", "tokens=8192", "rates=[0,0.75]"]
    result = figures_of(monkeypatch, tmp_path / "figures.json", *words)["result"]
    assert result["2 at 0"]["peak_gib"] < 0.7 * result["1 at 0"]["peak_gib"]
    assert 0 < result["2 at 0.75"]["sent_mib"] < 0.35 * result["2 at 0"]["sent_mib"]
    assert result["1 at 0"]["sent_mib"] == 0


@pytest.mark.slow
@pytest.mark.extended
def test_a_profile_lists_the_operations_that_take_longest(tmp_path, monkeypatch):
    result = figures_of(monkeypatch, tmp_path / "figures.json", "profile", "shape=tiny", "rates=[0.75]")["result"]
    seconds = [row["seconds"] for row in result["operations"]]
    assert len(seconds) == 10 and seconds == sorted(seconds, reverse=True)
    assert sum(seconds) <= result["seconds"] and "aten::mm" in [row["name"] for row in result["operations"]]


@pytest.mark.parametrize("what", ["step", "profile"])
def test_a_shape_that_the_device_cannot_hold_is_refused_in_one_line(what, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        figures_of(monkeypatch, tmp_path / "figures.json", what, "shape=tiny", "clips=1000000")
    assert stop.value.code == 2 and "a training step of this shape needs about" in capsys.readouterr().err


def test_an_attention_implementation_that_cannot_train_here_is_named():
    assert missing_kernel("sdpa", gpu=False) is None and missing_kernel("kernels-community/flash-attn3") is None
    assert missing_kernel("flex_attention", gpu=False) == "flex_attention trains on a CUDA device only"
    assert "needs the package flash_attn.cute, which is not installed" in (missing_kernel("flash_attention_4") or "")


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
