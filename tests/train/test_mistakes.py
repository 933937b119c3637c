"""What people mistype on the command line: one line on stderr, exit status 2, before data or weights are read."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from train.run import main

NAMES = {
    "train.stepz=3": "did you mean 'train.steps'?",
    "optim.learning_rate=1e-4": "learning_rate",
    "modle.path=x": "modle.path",
    "lora.r=8": "lora",
    "method=ev": "available: ",
    "method.prune_at=input": "prune_at=input needs a score of pixels: use method=pixel_delta",
    "scorer=frame_delta": "this key is now method=",
    "rate=adaptive": "rate=adaptive was removed: use rate=uniform",
    "rate._target_=evs.rates.Adaptive": "rate=adaptive was removed: use rate=uniform",
    "train.tower_cost=measured": "train.tower_cost was removed: remove the key",
    "+experiment=nothing": "available: ",
    "hydra/launcher=slurm": "available: ",
    "rate.hihg=0.5": "hihg",
    "rate._target_=evs.Unifrom": "Unifrom",
    "rate._target_=evs.FrameDelta": "_target_=evs.FrameDelta is unknown; use one of evs.Constant",
    "method._target_=evs.Uniform": "_target_=evs.Uniform is unknown; use one of evs.FrameDelta",
    "model.attention=spda": "model.attention=spda is unknown: use one of sdpa, eager",
    "model.scheme=keep": "model.scheme=keep is unknown: use one of preserve, vllm",
    "model.freeze=[visoin]": "model.freeze=visoin is unknown",
    "model.checkpoint_towers=[merger]": "model.checkpoint_towers=merger is unknown",
    "model.lora.targets='(q'": "model.lora.targets=(q is not a regular expression",
    "engine.precision=fp16": "engine.precision=fp16 is unknown",
    "engine.name=zeroth": "engine.name=zeroth is unknown",
    "data.format=lava": "lava",
    "preflight=yes": "preflight",
    "resume=runs/nothing": "resume=runs/nothing is not a checkpoint",
}
UNQUOTED = {
    f"data.train={path}": f"data.train={path} cannot be parsed: quote values with special characters: {remedy}"
    for path, remedy in {
        "a=b.jsonl": """'data.train="a=b.jsonl"'""",
        "a,b.jsonl": """'data.train="a,b.jsonl"'""",
        "a[1].jsonl": """'data.train="a[1].jsonl"'""",
        "[a b,ü].jsonl": """'data.train="[a b,ü].jsonl"'""",
        "vidéo.jsonl": """'data.train="vidéo.jsonl"'""",
        "a(1).b": """'data.train="a(1).b"'""",
    }.items()
}
TYPES = {
    "train.steps=many": "train.steps",
    "train.steps=null": "train.steps",
    "optim.lr=fast": "optim.lr",
    "optim.betas=[0.9]": "optim.betas=[0.9] must hold 2 values",
    "optim.betas=[a,b]": "optim.betas",
    "model.freeze=vision": "model.freeze",
    "model.lora=16": "model.lora",
    "train=4": "train",
    "rate.high=high": "rate",
    "engine.zero=3": "engine.zero",
    "train.steps": "train.steps",
    "train.steps=[1": "train.steps=[1",
}
RANGES = {
    "train.accumulation=-1": "train.accumulation=-1 must be at least 1",
    "engine.timeout_minutes=1e300": "engine.timeout_minutes=1e+300 must be above 0 and at most 525600",
    "data.workers=1000": "data.workers=1000 is too many processes",
    "eval.rates=[.5,.5]": "eval.rates=[0.5, 0.5] holds 0.5 twice",
    "optim.lr=nan": "optim.lr=nan must be above 0",
    "optim.warmup=1000": "optim.warmup=1000 is longer than train.steps=4",
    "model.lora.dora=true": "model.lora.dora=True has no effect without LoRA: set model.lora.r",
    "model.lora.alpha=32": "model.lora.alpha=32 has no effect without LoRA: set model.lora.r",
    "model.lora.targets=q_proj": "model.lora.targets=q_proj has no effect without LoRA: set model.lora.r",
    "eval.rates=[0,1]": "eval.rates=1.0 must be at least 0 and below 1",
    "eval.rates=[]": "eval.rates=[] must hold at least 1",
    "data.min_frames=200": "max_frames=8 is below min_frames=200",
    "data.media_root=/no/such": "data.media_root=/no/such is not a folder",
    "data.train=/no/such.jsonl": "data.train=/no/such.jsonl does not exist",
    "run_dir=/dev/null/run": "run_dir=/dev/null/run cannot be written (/dev/null is a file)",
    "run_dir=": "run_dir= is empty",
    "data.cache=/dev/null/cache": "data.cache=/dev/null/cache cannot be written (/dev/null is a file)",
    "rate.high=1.2": "pruning rate 1.2 is outside [0, 1)",
    "rate.low=0.95": "low <= high",
    "+engine.zero.stage=2": "engine.zero has no effect with engine=none",
}


@pytest.fixture(scope="module")
def unread(shared_words, checkpoint, tmp_path_factory) -> list[str]:
    """The words of a run whose data and weights cannot be read, so that reading them would be the error reported."""
    folder = tmp_path_factory.mktemp("unread")
    model = shutil.copytree(checkpoint("qwen2_5_vl"), folder / "model")
    for weights in model.glob("*.safetensors"):
        weights.unlink()
    data = folder / "data.jsonl"
    data.write_text("neither rows nor JSON\n")
    return shared_words(f"model.path={model}", f"data.train={data}")


def refusal(words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """The line on stderr that a command with a mistake ends with."""
    monkeypatch.setattr(sys, "argv", ["train/run.py", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    text = capfd.readouterr().err
    lines = [line for line in text.splitlines() if line.startswith("error: ")]  # libraries may warn beside it
    assert stop.value.code == 2 and len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


@pytest.mark.parametrize(
    "word", [*NAMES, *(pytest.param(word, marks=pytest.mark.slow) for word in [*UNQUOTED, *TYPES, *RANGES])]
)
def test_a_mistake_is_one_line_before_anything_is_read(unread, monkeypatch, capfd, word):
    line = refusal([*unread, word], monkeypatch, capfd)
    assert (NAMES | UNQUOTED | TYPES | RANGES)[word] in line, line


def test_the_data_would_be_the_error_without_a_mistake(unread, monkeypatch, capfd):
    assert "data.jsonl" in refusal(unread, monkeypatch, capfd)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("engine.zero.stage=1", "engine.zero.stage=1 contradicts engine=zero2"),
        ("+engine.zero.overlap=true", "engine.zero.overlap=True is refused by DeepSpeed"),
        ("+engine.zero.reduce_bucket_size=big", "engine.zero.reduce_bucket_size=big is refused by DeepSpeed"),
    ],
)
def test_deepspeeds_own_settings_are_checked_too(unread, monkeypatch, capfd, word, message):
    assert message in refusal([*unread, "engine=zero2", word], monkeypatch, capfd)


def test_a_scheme_of_another_family_is_named(unread, checkpoint, monkeypatch, capfd):
    model = f"model.path={checkpoint('qwen3_vl')}"
    capfd.readouterr()
    assert "scheme 'vllm' is unknown" in refusal([*unread, model, "model.scheme=vllm"], monkeypatch, capfd)


def test_a_processes_count_that_does_not_fit_is_named(unread, monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "engine=none runs one process, but 2 were started" in refusal(unread, monkeypatch, capfd)


def test_a_folder_that_is_no_model_is_named(unread, tmp_path: Path, monkeypatch, capfd):
    assert f"model.path={tmp_path} cannot be loaded" in refusal([*unread, f"model.path={tmp_path}"], monkeypatch, capfd)
