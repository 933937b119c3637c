"""What ruins a run does not ruin its checkpoints: a full disk, weights of NaN, a learning rate that kills."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.faulty import with_nan
from tests.runs import ended, rows, started
from train.checkpoint import manifest
from train.checkpoint.checkpoint import complete

ONE = ["train.save_every=1", "train.accumulation=1", "resume=auto"]


def mount(folder: Path, size: int, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", folder], check=True)


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount(folder, 1 << 20)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk is a tmpfs, which only root may mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=False)


def test_used_up_inodes_end_two_ranks_in_one_line(line, disk):
    for number in range(20):
        (disk / str(number)).touch()
    mount(disk, 1 << 20, "remount", "nr_inodes=23")
    code, printed = ended(started(*line("engine=ddp", "train.steps=1", run_dir=disk / "run"), ranks=2))
    errors = [text for text in printed.splitlines() if "error: " in text]
    assert code != 0 and len(errors) == 1 and "no inodes left: " in errors[0] and "remove files" in errors[0], printed


@pytest.mark.parametrize("room", [0.6, 1.5], ids=["the first checkpoint", "the second checkpoint"])
def test_a_full_disk_ends_two_ranks_in_a_line_and_a_restart_with_room_works(line, tmp_path, disk, room):
    words = [*ONE, "engine=ddp", "train.keep=1"]
    assert ended(started(*line(*words, "train.steps=1", run_dir=tmp_path / "run"), ranks=2))[0] == 0
    size = manifest.read(complete(tmp_path / "run" / "checkpoints")[-1]).size
    mount(disk, int(room * size), "remount")
    code, printed = ended(started(*line(*words, "train.steps=3", run_dir=disk / "run"), ranks=2))
    assert code != 0 and "free space" in printed and "Traceback" not in printed.split("torch/distributed")[0], printed
    assert any("error: " in text and "disk full" in text for text in printed.splitlines()), printed
    assert not list((disk / "run" / "checkpoints").glob("*.partial"))
    assert len(complete(disk / "run" / "checkpoints")) == int(room)
    mount(disk, 4 * size, "remount")
    code, printed = ended(started(*line(*words, "train.steps=3", run_dir=disk / "run"), ranks=2))
    assert code == 0, printed[-3000:]
    assert [row["step"] for row in rows(disk / "run")] == [1, 2, 3]


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_weights_of_nan_stop_two_ranks_and_leave_the_good_checkpoint(line, checkpoint, tmp_path, engine):
    run, bad = tmp_path / "run", tmp_path / "bad"
    words = [*ONE, f"engine={engine}", "train.keep=1"]
    assert ended(started(*line(*words, "train.steps=1", run_dir=run), ranks=2))[0] == 0
    shutil.copytree(run, tmp_path / "dead")
    killing = line(*words, "train.steps=20", "optim.lr=1e30", "train.max_bad_steps=2", run_dir=tmp_path / "dead")
    code, printed = ended(started(*killing, ranks=2))
    assert code != 0 and ("train.max_bad_steps=2" in printed or "are not finite" in printed), printed[-3000:]
    assert complete(tmp_path / "dead" / "checkpoints")[0].name == "step_00000001"
    assert not math.isfinite(rows(tmp_path / "dead")[-1]["loss"] or math.nan)
    with_nan(checkpoint("qwen2_5_vl"), bad)
    never = line(*words, f"model.path={bad}", "train.steps=9", "train.max_bad_steps=3", run_dir=tmp_path / "never")
    code, printed = ended(started(*never, ranks=2))
    assert code != 0 and "up to step 3, was not finite" in printed
    assert not complete(tmp_path / "never" / "checkpoints")
