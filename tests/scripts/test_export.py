from __future__ import annotations

import ctypes
import gc
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, Qwen3_5MoeConfig, Qwen3VLMoeConfig

from data.media.processor import CALL
from evs import FrameDelta
from evs.families import adapter_for
from evs.policy import Policy, read
from scripts import export
from scripts.make_tiny_model import make
from tests.runs import composed, trained
from train.build import build_run
from train.checkpoint.checkpoint import complete
from train.config import ModelConfig
from train.experts import publish_experts
from train.export.weights import weight_shapes, write_weights
from train.loop import fit
from train.model import build_model
from train.task import EvalRequest, UptrainTask

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "family", ["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "nemotron_h_omni"]
)
def test_the_export_is_the_base_with_other_weights(words, checkpoint, questions, tmp_path, family):
    trained(*words("train.steps=2", f"data.eval={questions}", "eval.limit=1", "eval.rates=[0.5]", family=family))
    out = tmp_path / "out"
    export.main(export.Options(run=str(tmp_path / "run"), out=str(out)))
    base = checkpoint(family)
    assert weight_shapes(out) == weight_shapes(base)
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (out, base))
    for config in (ours, theirs):
        config["vision_config"].pop("video_target_num_patches", None)  # by data.max_pixels
    assert ours == theirs
    model = AutoModelForImageTextToText.from_pretrained(out)
    AutoProcessor.from_pretrained(out)
    trained_weights = load_file(complete(tmp_path / "run" / "checkpoints")[-1] / "model" / "model.safetensors")
    for name, value in model.state_dict().items():
        if name in trained_weights:
            assert torch.equal(value, trained_weights[name].to(value.dtype)), name
    card = (out / "README.md").read_text()
    assert "| step 2 |" in card and (out / "curve.png").stat().st_size > 1000
    assert "vllm serve" in card and "or later" not in card
    versions = "0.32.0 or 0.33.0" if family == "nemotron_h_omni" else "0.31.0 or 0.32.0 or 0.33.0"
    assert f"The plugin needs vLLM {versions}; it refuses other versions" in card


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_what_was_trained_travels_with_the_export(words, tmp_path, capsys, family):
    trained(*words("train.steps=1", "data.fps=1", "data.max_pixels=12544", "method.dtype=float32", family=family))
    out = tmp_path / "out"
    export.main(export.Options(run=str(tmp_path / "run"), out=str(out)))
    policy = read(out)
    other = {"rates": policy.rates, "weights": policy.weights, "package": policy.package}
    assert policy == Policy(fps=1.0, max_frames=8, max_pixels=12544, scorer_dtype="float32", **other)
    assert policy.rates["name"] == "Uniform" and policy.weights.startswith("step_00000001 ") and policy.package
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("serve it: "))
    told = json.loads(re.search(r"--media-io-kwargs '(.*)'", line)[1])
    assert f"vllm serve {out} " in line and told["video"] == {
        "fps": 1.0,
        "min_frames": 4,
        "max_frames": 8,
        "num_frames": -1,
    }
    assert "--media-io-kwargs '{" in (out / "README.md").read_text()
    fresh = AutoProcessor.from_pretrained(out).video_processor
    grid = fresh(torch.zeros(8, 3, 300, 400, dtype=torch.uint8), **CALL)["video_grid_thw"][0]
    assert 0.5 * 12544 < grid[1] * grid[2] * fresh.patch_size**2 <= 12544
    assert (fresh.fps, fresh.max_frames) == (1.0, 8)


def test_a_family_whose_server_samples_and_resizes_by_other_names_is_told_so(words, tmp_path, capsys):
    trained(*words("train.steps=1", "data.fps=1", "data.max_pixels=12544", family="nemotron_h_omni"))
    out = tmp_path / "out"
    export.main(export.Options(run=str(tmp_path / "run"), out=str(out)))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("serve it: "))
    assert json.loads(re.search(r"--media-io-kwargs '(.*)'", line)[1]) == {"video": {"fps": 1.0, "num_frames": 8}}
    patches = AutoConfig.from_pretrained(out).vision_config.video_target_num_patches
    assert patches == AutoProcessor.from_pretrained(out).video_processor.video_target_num_patches == 12544 // 16**2


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


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_5", "qwen3_5_moe"])
def test_a_lora_run_exports_merged(words, checkpoint, tmp_path, family):
    trained(*words("train.steps=2", "model.lora.r=4", "model.lora.alpha=8", "optim.lr=0.1", family=family))
    export.main(export.Options(run=str(tmp_path / "run"), out=str(tmp_path / "out")))
    base = checkpoint(family)
    assert weight_shapes(tmp_path / "out") == weight_shapes(base)
    ours, theirs = (AutoModelForImageTextToText.from_pretrained(path).state_dict() for path in (tmp_path / "out", base))
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed and all("language_model" in name and "proj" in name for name in changed)
    assert any("linear_attn" in name for name in changed) == family.startswith("qwen3_5")
    assert not any(".experts." in name for name in changed)


LORA = ["model.lora.r=4", "model.lora.alpha=8", "optim.lr=0.1"]


@pytest.mark.parametrize("lora", [[], LORA, [*LORA, "model.lora.dora=true"]], ids=["full", "lora", "dora"])
def test_the_export_answers_as_the_trained_model_does(words, tmp_path, lora):
    config = composed(*words("engine.precision=fp32", "train.steps=2", *lora))
    run = build_run(config)
    assert run is not None
    fit(run)
    export.main(export.Options(run=str(tmp_path / "run"), out=str(tmp_path / "out")))
    (batch,) = next(iter(run.steps)).batches[:1]
    ours = build_model(ModelConfig(path=str(tmp_path / "out"), gradient_checkpointing=False), torch.float32)
    with torch.no_grad():
        trained_logits = run.task.eval()(batch, EvalRequest((0.0,)))[0].logits_TV
        task = UptrainTask(ours, adapter_for(ours, "preserve"), FrameDelta()).eval()
        logits = task(batch, EvalRequest((0.0,)))[0].logits_TV
    assert torch.equal(logits, trained_logits) if not lora else torch.allclose(logits, trained_logits, atol=1e-4)


def test_an_adapter_is_exported_alone_and_served_on_its_base(words, checkpoint, tmp_path, capsys):
    trained(*words("train.steps=1", "model.lora.r=4"))
    options = {"run": str(tmp_path / "run"), "out": str(tmp_path / "out"), "base_model": "user/base"}
    export.main(export.Options(**options, adapter=True))
    weights = [path.name for path in (tmp_path / "out").glob("*.safetensors")]
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert weights == ["adapter_model.safetensors"] and settings["base_model_name_or_path"] == "user/base"
    card = ModelCard.load(tmp_path / "out" / "README.md")
    data = card.data
    assert (data.library_name, data.base_model, data.base_model_relation) == ("peft", "user/base", "adapter")
    base, flags = checkpoint("qwen2_5_vl"), "--enable-lora --max-lora-rank 8 --mm-processor-kwargs"
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("serve it: "))
    assert line.startswith(f"serve it: vllm serve {base} {flags}") and f"--lora-modules evs={tmp_path / 'out'} " in line
    assert f"vllm serve user/base {flags}" in card.text and "--lora-modules evs=<this adapter> " in card.text


def test_an_adapter_that_no_server_takes_is_said_to_be_so(words, tmp_path, capsys):
    trained(*words("train.steps=1", "model.lora.r=4", "model.lora.dora=true"))
    export.main(export.Options(run=str(tmp_path / "run"), out=str(tmp_path / "out"), adapter=True))
    said = capsys.readouterr().out
    assert "the adapter cannot be served: vLLM has no DoRA" in said and "serve it: " not in said
    assert "vllm serve" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("family", "more", "reason"),
    [
        ("qwen2_5_vl", ["method=random_tokens"], "Qwen2_5_VLForConditionalGeneration by random"),
        ("glm4v", ["data.max_pixels=null"], "Glm4vForConditionalGeneration by evs"),
    ],
)
def test_an_export_that_no_server_prunes_is_said_to_be_so(words, tmp_path, capsys, family, more, reason):
    trained(*words("train.steps=1", *more, family=family))
    export.main(export.Options(run=str(tmp_path / "run"), out=str(tmp_path / "out")))
    said = capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (said, card):
        assert f"No server prunes {reason}" in text
        assert "vllm serve" in text and "--video-pruning-rate" not in text
    assert "plugin" not in card


def test_a_curve_is_added_to_an_export_that_is_there(words, checkpoint, tmp_path, capsys):
    base = shutil.copytree(checkpoint("qwen2_5_vl"), tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    trained(*words("train.steps=1", f"model.path={base}"))
    options = {"run": str(tmp_path / "run"), "out": str(tmp_path / "out"), "datasets": ["user/videos"]}
    export.main(export.Options(**options))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "Not evaluated yet" in card.text and "--video-pruning-rate RATE" in card.text
    assert "results=[curve.json]" in capsys.readouterr().out
    written = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    scores = [{"rate": rate, "accuracy": accuracy} for rate, accuracy in ((0, 0.9), (0.5, 0.895), (0.75, 0.6))]
    (tmp_path / "own.json").write_text(json.dumps({"name": "ours", "data": "held_out.jsonl", "scores": scores}))
    export.main(export.Options(**options, results=[str(tmp_path / "own.json")]))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "Recommended rate: 0.5," in card.text and "--video-pruning-rate 0.5 " in card.text
    assert read(tmp_path / "out").curve == {"0": 0.9, "0.5": 0.895, "0.75": 0.6}
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == written
    data = card.data.to_dict()
    assert (data["license"], data["datasets"]) == ("apache-2.0", ["user/videos"]) and "base_model" not in data
    (metrics,) = data["model-index"][0]["results"]
    assert [metric["value"] for metric in metrics["metrics"]] == [90.0, 89.5, 60.0]


def test_an_export_holds_little_more_than_the_weights(tmp_path):
    sizes = {"text_width": 1024, "text_layers": 4, "text_heads": 16, "text_mlp": 4096}
    base = make("qwen2_5_vl", tmp_path / "base", 0, **sizes)
    AutoModelForImageTextToText.from_pretrained(base).save_pretrained(tmp_path / "model", save_original_format=False)
    weights = (base / "model.safetensors").stat().st_size
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else memory that was freed could be used again unseen
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    write_weights(ModelConfig(path=str(base)), tmp_path / "model", tmp_path / "out")
    assert weights > 200e6 and memory("VmHWM") - before < 1.3 * weights


def memory(name: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the peak."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def test_an_export_never_overwrites(tmp_path, words):
    trained(*words("train.steps=1"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(ValueError, match="is not empty: give a new folder"):
        export.main(export.Options(run=str(tmp_path / "run"), out=str(tmp_path / "out")))


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.yaml: give the run_dir"):
        export.main(export.Options(run=str(tmp_path), out=str(tmp_path / "out")))
