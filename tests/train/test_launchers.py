"""The same command under other launchers than torchrun: two ranks, and our settings, not the launcher's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.test_run import metrics
from train.distributed import free_port

pytestmark = [pytest.mark.faults, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    ("launcher", "engine"),
    [
        ("accelerate launch --multi_gpu --num_processes 2 --main_process_port {port} --mixed_precision bf16", "ddp"),
        ("accelerate launch --use_deepspeed --zero_stage 3 --num_processes 2 --main_process_port {port}", "ddp"),
        ("deepspeed --num_gpus 2 --master_port {port}", "zero2"),
    ],
)
def test_a_launcher_starts_two_ranks(words, tmp_path, launcher, engine):
    more = ["train.steps=1", "train.accumulation=1", "train.batch_size=1", f"engine={engine}", "engine.precision=fp32"]
    program, *options = launcher.format(port=free_port()).split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [BIN / program, *options, ROOT / "train" / "run.py", *words(*more)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert metrics(tmp_path / "run", "samples") == [2]
