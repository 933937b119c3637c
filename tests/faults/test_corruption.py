"""Each way a checkpoint can be damaged is seen, named, and passed over for the newest whole one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.faults.trajectories import assert_same_trajectory
from tests.runs import ended, started
from train.checkpoint.checkpoint import complete


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0] ^ 4
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte]))


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGE = {truncate: "bytes instead of", flip: "checksum differs", zero: "checksum differs", Path.unlink: "is missing"}


@pytest.mark.parametrize(
    ("engine", "ranks", "pattern"),
    [
        ("none", 1, "state/model.safetensors"),
        ("none", 1, "state/optimizer.pt"),
        ("zero2", 2, "state/deepspeed/*_rank_1_*optim_states.pt"),
        ("zero3", 2, "state/deepspeed/zero_pp_rank_1_*model_states.pt"),
    ],
    ids=["weights", "optimizer", "zero2", "zero3"],
)
def test_every_damage_is_named_and_the_newest_whole_checkpoint_taken(line, tmp_path, engine, ranks, pattern):
    words = [
        f"engine={engine}",
        "train.save_every=1",
        "train.keep=9",
        "train.steps=6",
        "train.accumulation=1",
        "resume=auto",
    ]
    assert ended(started(*line(*words, run_dir=tmp_path / "whole"), ranks=ranks))[0] == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    damaged = complete(tmp_path / "run" / "checkpoints")[-len(DAMAGE) :]
    for checkpoint, damage in zip(damaged, DAMAGE):
        (shard,) = checkpoint.glob(pattern)
        damage(shard)
    code, printed = ended(started(*line(*words, run_dir=tmp_path / "run"), ranks=ranks))
    assert code == 0, printed[-3000:]
    for checkpoint, fault in zip(damaged, DAMAGE.values()):
        assert any(checkpoint.name in text and fault in text for text in printed.splitlines()), printed
    assert_same_trajectory(tmp_path / "run", tmp_path / "whole")
