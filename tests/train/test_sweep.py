"""A failed job of a sweep stops no other, a done one is skipped, and the table says what became of each."""

from __future__ import annotations

import pytest

from tests.runs import printed
from train import sweep
from train.cli import fail
from train.faults.signals import PREEMPTED
from train.reports.sweep_table import rows, table


@pytest.mark.slow
def test_a_sweep_with_a_broken_job_completes_the_others_and_skips_them_when_started_again(words, tmp_path, capsys):
    command = words("train.steps=1", "optim.lr=1e-3,-1,2e-3")
    status, first = printed(capsys, "-m", *command)
    assert status == 1 and first.count("error: optim.lr=-1.0 must be above 0") == 1
    assert "error: 1 of 3 jobs" in first and "Traceback" not in first
    status, again = printed(capsys, "-m", *command)
    assert status == 1 and again.count("done before, skipped") == 2
    lines = table(rows(tmp_path / "run")).splitlines()
    assert lines[0].startswith("| job | overrides | status | step | loss |")
    assert lines[2].startswith("| 0 | optim.lr=0.001 | done | 1 | ")
    assert lines[3] == "| 1 | optim.lr=-1 | failed |  |  | optim.lr=-1.0 must be above 0 |"


def test_a_job_begun_before_resumes_and_a_done_one_does_not_run(tmp_path):
    begun: list[bool] = []

    def run(before: bool) -> None:
        begun.append(before)
        if len(begun) == 1:
            fail("no luck")

    for _ in range(3):
        sweep.attempt(run, tmp_path / "0", ["a=1"])
    assert begun == [False, True]
    assert sweep.jobs(tmp_path) == {0: sweep.Job(["a=1"], "done")}
    sweep.attempt(run, tmp_path / "0", ["a=2"])
    assert begun == [False, True, True]


def test_a_crash_is_recorded_with_its_kind(tmp_path):
    sweep.attempt(lambda _: 1 // 0, tmp_path / "0", [])  # type: ignore[arg-type,return-value]
    assert sweep.read(tmp_path / "0") == sweep.Job(
        [], "failed", "ZeroDivisionError: integer division or modulo by zero"
    )


def test_a_preempted_job_ends_the_sweep(tmp_path):
    def run(_: bool) -> None:
        raise SystemExit(PREEMPTED)

    with pytest.raises(SystemExit):
        sweep.attempt(run, tmp_path / "0", [])
    job = sweep.read(tmp_path / "0")
    assert job is not None and job.status == "preempted"


def test_a_folder_without_jobs_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no job: give the run_dir of a sweep"):
        rows(tmp_path)
