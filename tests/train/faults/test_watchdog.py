"""The watchdog ends a process that makes no progress; it runs in a subprocess here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys, time
from pathlib import Path
from train.faults.watchdog import WATCHDOG

with WATCHDOG.watching(Path(sys.argv[1]), float(sys.argv[2])):
    WATCHDOG.enter("forward", int(sys.argv[3]), ["row7"])
    for _ in range(10):
        time.sleep(0.1)
        if sys.argv[4] == "works":
            WATCHDOG.progress()
print("done")
"""


def watched(folder: Path, limit_s: float, step: int = 3, does: str = "hangs") -> subprocess.Popen[str]:
    """A process that does something for a second and is ended after `limit_s` seconds without progress."""
    words = [sys.executable, "-c", PROGRAM, str(folder), str(limit_s), str(step), does]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": "0", "WORLD_SIZE": "2"}
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_process_without_progress_reports_its_step_and_ends(tmp_path):
    process = watched(tmp_path, 0.4)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "no progress for 0.0 minutes: rank 0 in forward, step 3, samples row7" in errors
    assert (tmp_path / "rank_0.txt").read_text().startswith("rank 0 of 2: forward, step 3, samples row7")


@pytest.mark.parametrize(("step", "does"), [(3, "works"), (0, "hangs")], ids=["progress", "before the first step"])
def test_a_process_goes_on_with_progress_and_for_longer_before_its_first_step(tmp_path, step, does):
    process = watched(tmp_path, 0.4, step, does)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "done\n"), errors


def test_a_report_of_another_rank_ends_the_process_and_one_of_an_earlier_run_does_not(tmp_path):
    (tmp_path / "rank_1.txt").write_text("of an earlier run")
    assert watched(tmp_path, 2).wait(60) == 0
    process = watched(tmp_path, 2)
    while process.poll() is None:
        time.sleep(0.2)
        (tmp_path / "rank_1.txt").write_text("rank 1 of 2: data")
    assert process.returncode == 1 and (tmp_path / "rank_0.txt").exists()
