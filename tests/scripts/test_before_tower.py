"""Commands on checkpoints that were trained for a tower that sees survivors alone: what cannot be is one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from evs.policy import FILE, Policy
from scripts import check_serving, evaluate, generate
from train import cli
from train.export.serving_metadata import serve_command

BEFORE = Policy(method="pixel_delta", prune_at="input", scorer_dtype=None)


@pytest.fixture
def trained(checkpoint, tmp_path):
    """A checkpoint with a policy, and its folder's configuration as it was."""

    def copy(family: str = "qwen2_5_vl", policy: Policy = BEFORE):
        folder = shutil.copytree(checkpoint(family), tmp_path / "trained")
        policy.write(folder)
        return folder

    return copy


def said(capsys, script, *words: str) -> str:
    """The one line with which a command ends."""
    with pytest.raises(SystemExit) as end:
        cli.run(script.main, script.Options, list(words))
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_before_tower_a_policy_marks_the_configuration_and_takes_the_mark_back(trained, checkpoint):
    folder = trained()
    assert json.loads((folder / "config.json").read_text())["evs_prune_at"] == "input"
    Policy().write(folder)
    assert (folder / "config.json").read_text() == (checkpoint("qwen2_5_vl") / "config.json").read_text()


@pytest.mark.parametrize("script", [evaluate, generate], ids=["evaluate", "generate"])
def test_before_tower_weights_without_their_policy_are_refused(trained, capsys, questions, script):
    folder = trained()
    (folder / FILE).unlink()
    words = {evaluate: [f"data={questions}"], generate: ["video=clip.mp4", "prompt=What?"]}[script]
    assert "evs.json is missing, and the weights were trained with prune_at=input" in said(
        capsys, script, f"model={folder}", *words
    )


def test_before_tower_a_method_that_scores_features_is_refused(trained, capsys, questions):
    words = [f"model={trained()}", f"data={questions}", "method=evs"]
    assert "prune_at=input needs a score of pixels: use method=pixel_delta" in said(capsys, evaluate, *words)


def test_before_tower_a_family_without_it_is_refused(trained, capsys, questions):
    words = [f"model={trained('nemotron_h_omni')}", f"data={questions}"]
    assert "nemotron_h_omni resizes frames in floating point" in said(capsys, evaluate, *words)


def test_before_tower_a_stock_server_is_refused(trained, capsys):
    words = [f"model={trained()}", "vllm_python=python", "servers=[stock,plugin]"]
    assert "a stock server encodes all tokens" in said(capsys, check_serving, *words)


def test_before_tower_the_command_of_a_later_block_asks_for_no_pruning():
    assert "--video-pruning-rate 0.5 " in serve_command(BEFORE, rate=0.5)
    assert "--video-pruning-rate" not in serve_command(replace(BEFORE, prune_at=2), rate=0.5)
