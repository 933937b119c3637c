"""kill -9 at random moments: the joined run is the uninterrupted one, whatever the engine."""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.faults.trajectories import assert_same_trajectory, kill_all
from tests.runs import ended, reached, rows, started

BUDGET = ["train.token_budget=260", "train.patch_budget=1200"]
LORA = ["model.lora.r=4", "model.lora.dropout=0.3"]
SETUPS = {  # name: (words, ranks, kills)
    "none": (["engine=none"], 1, 2),
    "lora": (["engine=none", *LORA], 1, 2),
    "budget": (["engine=none", *BUDGET], 1, 2),
    "ddp": (["engine=ddp"], 2, 3),
    "zero1": (["engine=zero1"], 2, 2),
    "zero2": (["engine=zero2", *BUDGET], 2, 3),
    "zero3": (["engine=zero3", *LORA], 2, 3),
    "zero3_offload": (["engine=zero3_offload"], 2, 3),
}


@pytest.mark.parametrize("name", SETUPS)
def test_a_killed_run_ends_where_the_uninterrupted_one_does(line, tmp_path, name):
    words, ranks, kills = SETUPS[name]
    steps = ["train.steps=12", "train.save_every=2", "train.accumulation=2", "data.workers=1", "resume=auto"]
    whole = started(*line(*words, *steps, run_dir=tmp_path / "whole"), ranks=ranks)
    assert ended(whole)[0] == 0
    moments = random.Random(os.environ.get("EVS_FAULT_SEED", "0") + name)
    for _ in range(kills):
        process = started(*line(*words, *steps, run_dir=tmp_path / "broken"), ranks=ranks)
        done = max((row["step"] for row in rows(tmp_path / "broken")), default=0)
        reached(process, tmp_path / "broken", min(10, done + moments.randint(0, 3)))
        time.sleep(moments.random())
        kill_all(process.pid)
        ended(process)
    code, printed = ended(started(*line(*words, *steps, run_dir=tmp_path / "broken"), ranks=ranks))
    assert code == 0, printed[-3000:]
    assert_same_trajectory(tmp_path / "broken", tmp_path / "whole")
