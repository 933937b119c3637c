"""Whole runs on real footage, in this process: learning, equal splits, exact resume, quarantine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import composed, cut_off, printed, trained
from train.build import build_run
from train.checkpoint.checkpoint import complete
from train.faults.watchdog import WATCHDOG
from train.loop import fit
from train.reports.summary import summarize
from train.run_folder import read_config

pytestmark = pytest.mark.slow
EXPERIMENTS = Path(__file__).parents[2] / "configs" / "experiment"


def metrics(run_dir: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(complete(run_dir / "checkpoints")[-1] / "model" / "model.safetensors")


def assert_same_weights(one: Path, other: Path, **tolerance: float) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **(tolerance or {"atol": 0.0, "rtol": 0.0}))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_loss_falls_and_every_rate_is_evaluated(words, questions, tmp_path, family):
    run = tmp_path / "run"
    more = [
        "engine.precision=bf16",
        "train.steps=8",
        "model.freeze=[]",
        f"data.eval={questions}",
        "eval.limit=2",
        "optim.lr=3e-3",
    ]
    trained(*words(*more, family=family))
    losses = metrics(run, "loss")
    assert losses[-1] < 0.7 * losses[0]
    for rate in ("0", "0.5", "0.75", "0.9"):
        before, after = metrics(run, f"eval/loss_at_{rate}")
        assert after < before
    assert all(0.5 < area <= 1 for area in metrics(run, "eval/score_area"))
    assert min(metrics(run, "kept")) < 0.8 and all(0 <= rate < 0.9 for rate in metrics(run, "rate"))


def test_the_global_loss_does_not_depend_on_the_split_over_micro_batches(words, tmp_path):
    fixed = ["rate=constant", "rate.rate=0.5", "train.steps=2", "optim.lr=1e-4"]
    for batch in (1, 2, 4):
        split = [f"train.batch_size={batch}", f"train.accumulation={4 // batch}"]
        trained(*words(*fixed, *split, run_dir=tmp_path / str(batch)))
    for name in ("loss", "grad_norm"):
        one, two, four = (metrics(tmp_path / batch, name) for batch in "124")
        assert two == pytest.approx(one, rel=1e-4) and two == pytest.approx(four, rel=1e-4)


def test_a_resumed_run_ends_where_the_unbroken_one_does(words, tmp_path):
    more = ["train.save_every=2", "train.keep=2"]
    trained(*words(*more, run_dir=tmp_path / "whole"))
    cut_off(tmp_path / "whole", tmp_path / "broken", 2)
    trained(*words(*more, "resume=auto", run_dir=tmp_path / "broken"))
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    assert metrics(tmp_path / "broken", "loss")[-2:] == metrics(tmp_path / "whole", "loss")[-2:]


def test_a_fresh_run_does_not_write_over_an_old_one(words):
    trained(*words("train.steps=1"))
    with pytest.raises(ValueError, match="already holds step_00000001: add resume=auto or change run_dir"):
        trained(*words("train.steps=1"))


def test_checkpoints_are_complete_or_absent_and_only_the_newest_stay(words, tmp_path):
    trained(*words("train.save_every=1", "train.keep=2"))
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in complete(folder)] == ["step_00000003", "step_00000004"]
    (folder / "step_00000009.partial").mkdir()
    assert complete(folder)[-1].name == "step_00000004"


def test_a_checkpoint_stays_until_the_step_after_the_next_one_has_proven_it(words, tmp_path):
    config = composed(*words("train.save_every=2", "train.keep=1", "train.steps=5", "train.accumulation=1"))
    run = build_run(config)
    assert run is not None
    there: list[list[int]] = []
    folder = tmp_path / "run" / "checkpoints"
    run.task.register_forward_pre_hook(
        lambda *_: there.append([int(path.name[-8:]) for path in complete(folder)] if folder.exists() else [])
    )
    fit(run)
    assert there == [[], [], [2], [2], [2, 4]]  # during step 5, which the weights of step 4 may not survive


def test_every_forward_pass_is_progress_in_an_evaluation_too(words, questions, monkeypatch):
    run = build_run(composed(*words("train.steps=1", f"data.eval={questions}", "eval.limit=3", "eval.rates=[0]")))
    assert run is not None and run.evaluate is not None
    passes: list[str] = []
    monkeypatch.setattr(WATCHDOG, "progress", lambda: passes.append("progress"))
    run.evaluate()
    assert len(passes) >= 3


def test_broken_and_missing_videos_are_quarantined_with_a_reason(words, questions, tmp_path):
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    cut = Path(rows[2]["video"]).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(cut[: len(cut) * 2 // 3])
    for row, name in zip(rows, ("broken.mp4", "missing.mp4", "cut.mp4")):
        row["video"] = str(tmp_path / name)
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained(*words("data.max_bad_fraction=0.5"))
    lost = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert {"row0", "row1"} <= {row["id"] for row in lost}
    assert all(row["reason"] and "\n" not in row["reason"] for row in lost)


FAMILY_OF = {"qwen3": "qwen3_vl", "qwen35": "qwen3_5", "glm": "glm4v", "nemotron": "nemotron_h_omni"}
PIXELS = {"glm": ["data.max_pixels=null", "data.total_pixels=75264"]}  # it limits the pixels of a whole clip


@pytest.mark.parametrize("experiment", sorted(path.stem for path in EXPERIMENTS.glob("*.yaml")))
def test_every_shipped_experiment_takes_a_step_with_a_tiny_model(words, experiment):
    name = experiment.split("_")[0]
    one = ["train.steps=1", "train.batch_size=1", "engine.sequence_parallel=1", *PIXELS.get(name, [])]
    trained(*words(*one, family=FAMILY_OF.get(name, "qwen2_5_vl"), experiment=experiment))


@pytest.mark.parametrize("dora", ["false", "true"])
def test_lora_trains_adapters_alone(words, tmp_path, dora):
    trained(*words("model.lora.r=4", "model.lora.alpha=8", f"model.lora.dora={dora}", "train.steps=2"))
    saved = complete(tmp_path / "run" / "checkpoints")[-1] / "model"
    names = load_file(saved / "adapter_model.safetensors")
    assert all("lora_" in name for name in names) and any("magnitude" in name for name in names) == (dora == "true")


def test_a_budgeted_run_fills_its_micro_batches_and_resumes_exactly(words, tmp_path):
    budget = ["train.token_budget=700", "train.patch_budget=4000", "train.save_every=2", "train.keep=2"]
    trained(*words(*budget, run_dir=tmp_path / "whole"))
    kept = metrics(tmp_path / "whole", "tokens/after")  # of two micro-batches
    assert max(kept) <= 1400 and max(metrics(tmp_path / "whole", "samples")) > 4
    cut_off(tmp_path / "whole", tmp_path / "broken", 2)
    trained(*words(*budget, "resume=auto", run_dir=tmp_path / "broken"))
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")


def test_a_budget_below_one_sample_stops_before_training(words):
    with pytest.raises(ValueError, match=r"token_budget=50 is smaller than sample row\d alone: give at least \d+"):
        trained(*words("train.token_budget=50"))


@pytest.mark.parametrize("audit", [True, False])
def test_what_an_evaluation_leaves_out_is_listed_once(words, questions, tmp_path, audit):
    row = json.loads(questions.read_text().splitlines()[0])
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row | more) + "\n" for more in ({}, {"id": "lost", "video": "gone.mp4"})))
    given = [f"data.eval={held_out}", f"data.audit={audit}", "train.steps=1", "eval.rates=[0]", "preflight=off"]
    trained(*words(*given, "show=false"))
    lost = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert [row["id"] for row in lost] == ["lost"] and "no such file" in lost[0]["reason"]
    assert metrics(tmp_path / "run", "eval/quarantined") == [0 if audit else 1] * 2


def test_a_resume_lists_and_counts_bad_rows_once(words, questions, tmp_path):
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows[0]["video"], rows[1]["video"] = "gone.mp4", "gone.mp4"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["train.save_every=1", "train.keep=9", "resume=auto", "show=false"]
    for steps in (1, 2, 2, 4):  # the last time from step 1
        trained(*words(*more, f"train.steps={steps}"))
        if steps == 2:
            shutil.rmtree(complete(tmp_path / "run" / "checkpoints")[-1])
    lost = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert [row["id"] for row in lost] == ["row0", "row1"]
    assert metrics(tmp_path / "run", "quarantined") == [2, 0, 0, 0]
    assert sum(summarize(tmp_path / "run").quarantined.values()) == 2


def test_rows_that_silently_set_their_own_frames_are_counted_in_the_summary(words, questions, tmp_path, capsys):
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows[0]["fps"], rows[1]["nframes"] = 1.0, 4
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows[1:3]))
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["train.steps=1", f"data.eval={held_out}", "eval.rates=[0]", "show=false"]
    status, text = printed(capsys, *words(*more))
    assert status == 0 and "data.train: 2 rows set frames or pixels" in text
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["own_settings"] == {"data.train": 2, "data.eval": 1}


def test_a_tilde_in_configured_paths_is_the_home_folder(words, questions, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = ['data.train="~/rows.jsonl"', 'run_dir="~/run"', 'data.cache="~/cache"']
    shutil.copy(questions, tmp_path / "rows.jsonl")
    trained(*words("train.steps=1", *paths, "show=false"))
    assert (tmp_path / "cache").is_dir()
    assert read_config(tmp_path / "run").data.train == str(tmp_path / "rows.jsonl")


def test_renamed_columns_and_a_held_out_fraction_of_one_file(words, questions, tmp_path):
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    renamed = [{"clip": row["video"], "dialog": row["conversations"]} for row in rows]
    questions.write_text("".join(json.dumps(row) + "\n" for row in renamed))
    names = ["messages=dialog", "videos=clip", "role=from", "content=value", "user=human", "assistant=gpt"]
    more = ["data.eval_fraction=0.3", "eval.rates=[0.5]", "train.steps=1"]
    trained(*words(*[f"data.columns.{name}" for name in names], *more))
    assert len(metrics(tmp_path / "run", "eval/accuracy_at_0.5")) == 2
