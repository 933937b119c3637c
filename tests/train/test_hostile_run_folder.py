"""What a run folder holds is data: nothing in it is imported, called or looked up in the environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from tests.runs import composed
from train.export.serving_metadata import policy_of
from train.jsonl import read_lines
from train.plugins import build, build_methods
from train.reports.curve import evaluations
from train.reports.summary import summarize
from train.run_folder import read_config

CALLS = [
    {"_target_": "os.system", "command": "touch hostile"},
    {"_target_": "torch.load", "f": "hostile.pt", "weights_only": False},
    {"_target_": "builtins.eval", "_args_": ["1"]},
    {"_target_": "hostile.Uniform"},
    {"_target_": "evs.hostile.METHODS"},
    {"_target_": "evs.rates.torch.load", "f": "hostile.pt"},
    {"_target_": ["evs.Uniform"]},
    {"_target_": None},
    {},
]


@pytest.fixture
def importable(tmp_path, monkeypatch) -> Path:
    """A module `hostile` that leaves a mark once it is imported."""
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nclass Uniform: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def configuration() -> str:
    config = composed("+experiment=demo", "model.path=base", "data.train=rows.jsonl", "train.steps=1")
    return OmegaConf.to_yaml(OmegaConf.structured(config))


@pytest.fixture
def run_dir(configuration, tmp_path) -> Path:
    """A run's folder with the configuration of a run."""
    (tmp_path / "config.yaml").write_text(configuration)
    return tmp_path


def changed(run_dir: Path, **values: object) -> Path:
    path = run_dir / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))
    return run_dir


@pytest.mark.parametrize("node", CALLS, ids=str)
@pytest.mark.parametrize("key", ["rate", "method"])
def test_a_hostile_target_is_refused_and_not_imported(importable, key, node):
    for nested in (node, {"_target_": "evs.Mixture", "components": [node]}, {"_target_": "evs.Uniform", "low": node}):
        with pytest.raises(ValueError, match=f"{key}"):
            build(key, nested)
    with pytest.raises(ValueError, match="method"):
        build_methods({"methods": {"one": node}})
    assert not (importable / "imported").exists() and "hostile" not in sys.modules


@pytest.mark.parametrize("node", CALLS, ids=str)
@pytest.mark.parametrize("key", ["rate", "method"])
def test_a_hostile_configuration_gives_no_policy(importable, run_dir, key, node):
    with pytest.raises(ValueError):
        policy_of(read_config(changed(run_dir, **{key: node})))
    assert not (importable / "imported").exists()


@pytest.mark.parametrize("text", ["${oc.env:HF_TOKEN}", "x${oc.env:HF_TOKEN}y", "${seed}", "${oc.decode:'1'}"])
def test_a_hostile_interpolation_is_refused_with_its_key(run_dir, monkeypatch, text):
    monkeypatch.setenv("HF_TOKEN", "secret")
    for changes in ({"tracker": {"name": text}}, {"rate": {"_target_": "evs.Constant", "rate": text}}):
        with pytest.raises(ValueError, match=r"config\.yaml: .*(tracker\.name|rate\.rate)") as error:
            read_config(changed(run_dir, **changes))
        assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "seed: [", "seed: {a: !!python/object/apply:os.system [true]}", "\0", "x: 1"]
)
def test_a_hostile_configuration_is_refused_in_one_line(run_dir, text):
    (run_dir / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml: ") as error:
        read_config(run_dir)
    assert "\n" not in str(error.value)


def test_a_run_configuration_is_what_was_saved(run_dir):
    config = composed("+experiment=demo", "model.path=base", "data.train=rows.jsonl", "train.steps=1")
    assert read_config(run_dir) == config
    assert policy_of(config).rates == {"name": "Uniform", "low": 0.0, "high": 0.9}


STEP = {"step": 1, "samples": 2, "samples_per_s": 1.0, "tokens/before": 4, "tokens/after": 2, "rate": 0.5}


def test_a_hostile_end_of_the_metrics_is_named_and_left_out(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps(STEP) + "\n" + json.dumps({"step": 1, "eval/accuracy_at_0": 0.5}) + "\n"
    for torn in (b'{"step": 2, "loss', b'{"step": 2}'[:-1], b'{"step": "\xc3', b"\0" * 8):
        path.write_bytes(whole.encode() + torn)
        assert summarize(tmp_path).steps == 1 and evaluations(tmp_path)[1].accuracy == {0.0: 0.5}
        assert f"{path}:3" in capsys.readouterr().err


@pytest.mark.parametrize("torn", ['{"step": 2, "loss\n', "[1]\n", "\0\n", '"text"\n'])
def test_a_hostile_line_within_the_metrics_is_one_line_that_names_it(tmp_path, torn):
    (tmp_path / "metrics.jsonl").write_text(torn + json.dumps(STEP) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: ") as error:
        read_lines(tmp_path / "metrics.jsonl")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values", [{"rate": "x"}, {"rate": None}, {"step": None}, {"samples": []}, {"samples_per_s": 0}]
)
def test_hostile_values_of_the_metrics_are_one_line(tmp_path, values):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(STEP | values) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl"):
        summarize(tmp_path)
