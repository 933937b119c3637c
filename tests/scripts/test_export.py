from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen3_5MoeConfig, Qwen3VLMoeConfig

from data.media.processor import CALL
from evs.policy import Policy, read
from scripts import export
from tests.runs import trained
from train.experts import publish_experts
from train.state.checkpoint import complete

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"])
def test_the_export_is_the_base_with_other_weights(words, checkpoint, questions, tmp_path, family):
    trained(*words(f"data.eval={questions}", "eval.limit=1", family=family))
    out = tmp_path / "out"
    export.main(export.Options(run=str(tmp_path / "run"), out=str(out)))
    base = checkpoint(family)
    assert export.weight_shapes(out) == export.weight_shapes(base)
    assert json.loads((out / "config.json").read_text()) == json.loads((base / "config.json").read_text())
    model = AutoModelForImageTextToText.from_pretrained(out)
    AutoProcessor.from_pretrained(out)
    trained_weights = load_file(complete(tmp_path / "run" / "checkpoints")[-1] / "model" / "model.safetensors")
    for name, value in model.state_dict().items():
        if name in trained_weights:
            assert torch.equal(value, trained_weights[name].to(value.dtype)), name
    card = (out / "README.md").read_text()
    assert "| step 4 |" in card and (out / "curve.png").stat().st_size > 1000


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_what_was_trained_travels_with_the_export(words, tmp_path, capsys, family):
    trained(*words("train.steps=1", "data.fps=1", "data.max_pixels=12544", "method.dtype=float32", family=family))
    out = tmp_path / "out"
    export.main(export.Options(run=str(tmp_path / "run"), out=str(out)))
    policy = read(out)
    assert policy == Policy(fps=1.0, max_frames=8, max_pixels=12544, scorer_dtype="float32", rates=policy.rates)
    assert policy.rates["name"] == "Uniform"
    line = capsys.readouterr().out.splitlines()[-1]
    told = json.loads(re.search(r"--media-io-kwargs '(.*)'", line)[1])
    assert f"vllm serve {out} " in line and told == {"video": {"fps": 1.0, "min_frames": 4, "max_frames": 8}}
    assert "--media-io-kwargs '{" in (out / "README.md").read_text()
    fresh = AutoProcessor.from_pretrained(out).video_processor
    grid = fresh(torch.zeros(8, 3, 300, 400, dtype=torch.uint8), **CALL)["video_grid_thw"][0]
    assert 0.5 * 12544 < grid[1] * grid[2] * fresh.patch_size**2 <= 12544
    assert (fresh.fps, fresh.max_frames) == (1.0, 8)


def test_square_experts_are_refused(tmp_path):
    save_file({"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(2, 8, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="gate_up_proj is square"):
        publish_experts(tmp_path, Qwen3VLMoeConfig(text_config={"hidden_size": 8}))


def test_experts_of_qwen3_5_are_published_as_they_lie_in_memory(tmp_path):
    weights = {"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(2, 6, 8)}
    save_file(weights, tmp_path / "model.safetensors")
    publish_experts(tmp_path, Qwen3_5MoeConfig(text_config={"hidden_size": 8}))
    assert load_file(tmp_path / "model.safetensors").keys() == weights.keys()
    assert load_file(tmp_path / "model.safetensors")["model.layers.0.mlp.experts.gate_up_proj"].shape == (2, 6, 8)


def test_a_lora_run_exports_merged(words, checkpoint, tmp_path):
    trained(*words("model.lora.r=4", "model.lora.alpha=8", "optim.lr=0.1"))
    export.main(export.Options(run=str(tmp_path / "run"), out=str(tmp_path / "out")))
    base = checkpoint("qwen2_5_vl")
    assert export.weight_shapes(tmp_path / "out") == export.weight_shapes(base)
    ours, theirs = (AutoModelForImageTextToText.from_pretrained(path).state_dict() for path in (tmp_path / "out", base))
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed and all("language_model" in name and "proj" in name for name in changed)


def test_an_export_never_overwrites(tmp_path, words):
    trained(*words("train.steps=1"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(ValueError, match="is not empty: give a new folder"):
        export.main(export.Options(run=str(tmp_path / "run"), out=str(tmp_path / "out")))


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.yaml: give the run_dir"):
        export.main(export.Options(run=str(tmp_path), out=str(tmp_path / "out")))
