"""Checkpoints that prove themselves: the damaged are passed over and named, another run is refused, the best stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from scripts import export, report
from tests.runs import rows, trained
from train.checkpoint import manifest
from train.checkpoint.checkpoint import candidates, complete, outdated, remove_partial
from train.checkpoint.lock import lock


def made(folder: Path, scores: dict[int, float | None]) -> Path:
    for step, score in scores.items():
        (folder / f"step_{step:08d}" / "state").mkdir(parents=True)
        if score is not None:
            (folder / f"step_{step:08d}" / "score.json").write_text(json.dumps({"accuracy": score}))
    return folder


def test_the_newest_and_the_best_are_kept(tmp_path):
    folder = made(tmp_path, {1: 0.4, 2: 0.9, 3: 0.5, 4: None, 5: 0.6})
    assert [path.name[-1] for path in outdated(folder, 2)] == ["1", "3"]


def test_what_a_dead_run_left_is_removed_and_nothing_else(tmp_path):
    folder = made(tmp_path, {1: None})
    (folder / "step_00000002.partial" / "state").mkdir(parents=True)
    remove_partial(folder)
    assert [path.name for path in folder.iterdir()] == ["step_00000001"]


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not a checkpoint: give auto or a folder"):
        candidates(str(tmp_path), tmp_path)


HOLDER = (
    "import sys, time; from pathlib import Path; from train.checkpoint.lock import lock; "
    "held = lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
)


def test_a_second_run_is_kept_out_until_the_first_is_dead(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"is in use by process {holder.pid} on .* since .*: wait, or give another"):
        lock(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    lock(tmp_path).close()


@pytest.fixture(scope="module")
def original(shared_words) -> Path:
    return Path(trained(*shared_words("train.save_every=1", "train.keep=9", "tracker.batches=true")).run_dir)


@pytest.fixture
def saved(original, tmp_path) -> Path:
    """A run of four steps with a checkpoint of each."""
    return shutil.copytree(original, tmp_path / "run")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_and_named(words, saved, tmp_path, capsys):
    folder = saved / "checkpoints"
    whole = (saved / "metrics.jsonl").read_text().splitlines()
    steps = complete(folder)
    flip(steps[3] / "state" / "model.safetensors")
    truncate(steps[2] / "state" / "optimizer.pt")
    (steps[1] / "manifest.json").write_text("{}")
    trained(*words("train.save_every=1", "train.keep=9", "resume=auto"))
    printed = capsys.readouterr().out
    for step, fault in ((4, "model.safetensors: checksum differs"), (3, "bytes instead of"), (2, "is damaged")):
        assert any(f"step_{step:08d}" in line and fault in line for line in printed.splitlines())
    assert [row["step"] for row in rows(saved)] == [1, 2, 3, 4]
    assert [row["loss"] for row in rows(saved)] == [json.loads(line)["loss"] for line in whole]


@pytest.mark.slow
def test_no_whole_checkpoint_is_an_error_and_not_a_fresh_start(words, saved):
    for checkpoint in complete(saved / "checkpoints"):
        zero(checkpoint / "state" / "model.safetensors")
    with pytest.raises(ValueError, match=r"all checkpoints are damaged .* remove them to start from the beginning"):
        trained(*words("resume=auto"))


@pytest.mark.slow
def test_a_resume_that_would_be_another_run_is_refused_and_can_be_allowed(words, questions, saved):
    settings = (saved / "config.yaml").read_text()
    with pytest.raises(ValueError, match=r"seed was 0, is 7.*resume_changes=\[seed\]"):
        trained(*words("resume=auto", "seed=7", "train.steps=5"))
    with pytest.raises(ValueError, match=r"plan.batch_size was 1, is 2; rates.high was 0.9, is 0.5.*\[plan,rates\]"):
        trained(*words("resume=auto", "train.batch_size=2", "rate.high=0.5"))
    with pytest.raises(ValueError, match=r"model.lora.*cannot be loaded into another model"):
        trained(*words("resume=auto", "model.lora.r=4"))
    text = questions.read_text()
    questions.write_text(text.replace("five", "six"))
    with pytest.raises(ValueError, match=r"data.rows was .*resume_changes=\[data\]"):
        trained(*words("resume=auto"))
    questions.write_text(text)
    assert (saved / "config.yaml").read_text() == settings
    trained(*words("resume=auto", "seed=7", "train.steps=5", "resume_changes=[seed]"))
    assert rows(saved)[-1]["step"] == 5


@pytest.mark.slow
def test_a_checkpoint_that_brings_code_is_refused(words, saved, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    newest = complete(saved / "checkpoints")[-1]
    torch.save(Evil(), newest / "state" / "optimizer.pt")
    reseal(newest)
    with pytest.raises(ValueError, match="holds more than tensors"):
        trained(*words(f"resume={newest}", "train.steps=5"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_run_with_keys_that_were_removed_is_still_reported_exported_and_resumed(words, saved, tmp_path):
    config = saved / "config.yaml"
    config.write_text(config.read_text().replace("\ntrain:\n", "\ntrain:\n  tower_cost: '2.6'\n"))
    newest = complete(saved / "checkpoints")[-1]
    (newest / "state" / "rates.json").write_text("[1.0, null, 2.0, null]")
    before = manifest.read(newest).shape
    adaptive = {"_target_": "evs.Adaptive", "floor": 0.25, "levels": 64}
    reseal(newest, before | {"plan": before["plan"] | {"tower_cost": "2.6"}, "rates": adaptive})
    (saved / "batches.jsonl").unlink()  # so that the report would draw the rates again
    report.main(report.Options(run=str(saved)))
    export.main(export.Options(run=str(saved), out=str(tmp_path / "out")))
    with pytest.raises(ValueError, match=r"rates._target_ was evs.Adaptive, is evs.Uniform.*changes=\[plan,rates\]"):
        trained(*words("resume=auto", "train.steps=5"))
    trained(*words("resume=auto", "train.steps=5", "resume_changes=[plan,rates]"))
    assert rows(saved)[-1]["step"] == 5


def reseal(checkpoint: Path, shape: dict | None = None) -> None:
    """The manifest that whoever made these files would have written."""
    saved = manifest.read(checkpoint)
    (checkpoint / "manifest.json").unlink()
    manifest.seal(Accelerator(cpu=True), checkpoint, saved.step, shape or saved.shape)


@pytest.mark.slow
def test_a_step_is_the_same_on_one_rank_by_two_and_resumed_metrics_hold_each_step_once(words, saved, tmp_path):
    batches = rows(saved, "batches.jsonl")
    assert [(row["step"], row["place"]) for row in batches] == [(s, p) for s in range(1, 5) for p in range(2)]
    with (saved / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a line that a kill cut off
    trained(*words("resume=auto", "train.steps=6", "tracker.batches=true", "optim.warmup=0", "optim.final_lr=1"))
    assert [row["step"] for row in rows(saved)] == [1, 2, 3, 4, 5, 6]
    assert rows(saved, "batches.jsonl")[:8] == batches


@pytest.mark.slow
def test_a_resumed_run_takes_the_learning_rate_it_is_given(words, saved):
    trained(*words("resume=auto", "train.steps=5", "optim.lr=3e-4", "optim.warmup=0", "optim.final_lr=1"))
    assert rows(saved)[-1]["lr"] == pytest.approx(3e-4)


@pytest.mark.slow
def test_an_evaluation_that_a_kill_prevented_is_made_up_for(words, questions, tmp_path):
    more = [f"data.eval={questions}", "eval.limit=1", "eval.rates=[0]", "eval.every=2", "train.save_every=2"]
    run = tmp_path / "run"
    trained(*words(*more, "train.steps=2"))
    (complete(run / "checkpoints")[-1] / "score.json").unlink()
    lines = [row for row in rows(run) if "samples" in row or row["step"] == 0]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    trained(*words(*more, "train.steps=2", "resume=auto"))
    assert [row["step"] for row in rows(run) if "eval/loss_at_0" in row] == [0, 2]
