"""A real lmms-eval finds our model by its entry point, and answers as scripts/evaluate.py does.

EVS_LMMS_ENV names an environment with `pip install evs-uptrain[lmms-eval] decord`, which lmms-eval's own class imports.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from evs.policy import Policy
from scripts import evaluate
from tests.serving.conftest import ROOT
from train.export.serving_metadata import write_processor

pytestmark = pytest.mark.serving
TASK = Path(__file__).parent / "lmms_task"
RATES = [0.0, 0.75]


@pytest.fixture
def python() -> Path:
    folder = os.environ.get("EVS_LMMS_ENV")
    if folder is None:
        pytest.skip("needs lmms-eval: name its environment in EVS_LMMS_ENV")
    return Path(folder) / "bin" / "python"


@pytest.fixture
def lettered(checkpoint, tmp_path) -> Path:
    """An export whose head knows four letters only, of which one is always above the rest of the words."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "lettered"))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    letters = [AutoTokenizer.from_pretrained(folder)(each)["input_ids"][0] for each in "ABCD"]
    one, other = torch.randn(2, model.lm_head.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[letters] = torch.stack([one, -one, other, -other])
    model.save_pretrained(folder)
    policy = Policy(max_frames=8, max_pixels=25088, scorer_dtype="float32")
    policy.write(folder)
    write_processor(folder, policy)
    return folder


def documents(clips: list[Path]) -> list[dict[str, str]]:
    names = [clip.stem for clip in clips]
    questions = [
        f"{i}: which video is it?\n" + "\n".join(f"{a}. {b}" for a, b in zip("ABCD", names)) for i in range(12)
    ]
    return [
        {"video": str(clips[i % len(clips)]), "question": question, "answer": "ABCD"[i % 4]}
        for i, question in enumerate(questions)
    ]


def row(number: int, document: dict[str, str]) -> dict[str, Any]:
    turns = [("human", f"<video>\n{document['question']}"), ("gpt", document["answer"])]
    talk = [{"from": who, "value": text} for who, text in turns]
    return {"id": str(number), "video": document["video"], "conversations": talk}


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def test_lmms_eval_gives_the_accuracy_and_the_answers_of_evaluate(python, lettered, clips, tmp_path):
    asked = documents(clips)
    task = Path(shutil.copytree(TASK, tmp_path / "task"))
    yaml, file = task / "evs_letters.yaml", lines(tmp_path / "documents.jsonl", asked)
    yaml.write_text(yaml.read_text().replace("EVS_LETTERS", str(file)))
    data = lines(tmp_path / "rows.jsonl", [row(i, each) for i, each in enumerate(asked)])
    out = tmp_path / "ours.json"
    evaluate.main(evaluate.Options(str(lettered), str(data), RATES, str(out), dtype="float32", workers=0))
    scores = {each["rate"]: each["accuracy"] for each in json.loads(out.read_text())["scores"]}
    answers = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()[1:]]
    for rate in RATES:
        accuracy, given = run(python, lettered, task, tmp_path / f"{rate:g}", rate)
        assert accuracy == pytest.approx(scores[rate])
        assert given == [each["text"] for each in answers if each["rate"] == rate]


@pytest.mark.parametrize("checkpoint", ["qwen3_vl"], indirect=True)
def test_lmms_eval_s_own_model_with_one_added_line_gives_the_answers_of_evaluate(python, lettered, clips, tmp_path):
    asked = documents(clips)
    task = Path(shutil.copytree(TASK, tmp_path / "task"))
    yaml, file = task / "evs_letters.yaml", lines(tmp_path / "documents.jsonl", asked)
    yaml.write_text(yaml.read_text().replace("EVS_LETTERS", str(file)))
    rows = [row(i, each) for i, each in enumerate(asked)]
    for each in rows:
        each["conversations"].insert(0, {"from": "system", "value": "You are a helpful assistant."})
    data, out = lines(tmp_path / "rows.jsonl", rows), tmp_path / "ours.json"
    evaluate.main(evaluate.Options(str(lettered), str(data), RATES, str(out), dtype="bfloat16", workers=0))
    answers = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()[1:]]
    sizes = {"fps": 2.0, "max_num_frames": 8, "min_pixels": 3136, "max_pixels": 25088}
    arguments = {"pretrained": str(lettered), "device": "cpu", "device_map": "cpu", "attn_implementation": "sdpa"}
    for rate in RATES:
        job = {"arguments": arguments | sizes, "rate": rate, "task": str(task), "out": str(tmp_path / "theirs.json")}
        (tmp_path / "job.json").write_text(json.dumps(job))
        quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        command = [python, "-m", "tests.serving.lmms_stock", str(tmp_path / "job.json")]
        done = subprocess.run(command, env={**os.environ, **quiet}, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        theirs = json.loads((tmp_path / "theirs.json").read_text())
        assert theirs == [each["text"] for each in answers if each["rate"] == rate] and len({*theirs}) > 1


def run(python: Path, model: Path, task: Path, out: Path, rate: float) -> tuple[float, list[str]]:
    """(accuracy, what was answered), as lmms-eval's own command writes them."""
    name = "evs_qwen3_vl" if "qwen3" in (model / "config.json").read_text() else "evs_qwen2_5_vl"
    words = [
        "-m",
        "lmms_eval",
        "--model",
        name,
        "--tasks",
        "evs_letters",
        "--include_path",
        str(task),
        "--device",
        "cpu",
    ]
    words += ["--model_args", f"pretrained={model},pruning_rate={rate:g},dtype=float32", "--batch_size", "4"]
    words += ["--log_samples", "--output_path", str(out)]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run([python, *words], env={**os.environ, **quiet}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = out.rglob("*_results.json")
    (samples,) = out.rglob("*_samples_evs_letters.jsonl")
    rows = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda each: each["doc_id"])
    accuracy = json.loads(results.read_text())["results"]["evs_letters"]["accuracy,none"]
    return accuracy, [each["filtered_resps"].strip() for each in rows]
