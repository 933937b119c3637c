"""A sweep as a table: one row per job with its overrides, status, last step, loss and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.jsonl import read_lines
from train.reports.markdown import markdown_table
from train.sweep import Job, jobs

PREFIX = "eval/accuracy_at_"


@dataclass(frozen=True)
class Row:
    number: int
    job: Job
    step: int | None  # the last one reported
    loss: float | None
    accuracy: dict[float, float]  # by rate, of the last evaluation


def rows(folder: Path) -> list[Row]:
    """One row per job. Raise ValueError for a folder without jobs."""
    by_number = jobs(folder) if folder.is_dir() else {}
    if not by_number:
        raise ValueError(f"sweep={folder} holds no job: give the run_dir of a sweep (train/run.py -m)")
    return [_row(number, job, folder / str(number) / "metrics.jsonl") for number, job in by_number.items()]


def _row(number: int, job: Job, metrics: Path) -> Row:
    last: dict[str, Any] = {}
    for row in read_lines(metrics):
        last |= row
    accuracy = {float(name.removeprefix(PREFIX)): value for name, value in last.items() if name.startswith(PREFIX)}
    return Row(number, job, last.get("step"), last.get("loss"), accuracy)


def table(job_rows: Sequence[Row]) -> str:
    """A Markdown table without the overrides that all jobs share; accuracy is in percent."""
    shared = set.intersection(*(set(row.job.overrides) for row in job_rows)) if len(job_rows) > 1 else set()
    rates = sorted({rate for row in job_rows for rate in row.accuracy})
    heads = ["job", "overrides", "status", "step", "loss", *(f"accuracy at {rate:g}" for rate in rates), "error"]
    cells = []
    for row in job_rows:
        own = " ".join(word for word in row.job.overrides if word not in shared)
        figures = ["" if row.step is None else str(row.step), "" if row.loss is None else f"{row.loss:.4f}"]
        figures += [f"{100 * row.accuracy[rate]:.1f}" if rate in row.accuracy else "" for rate in rates]
        cells.append([row.number, own, row.job.status, *figures, row.job.error or ""])
    return markdown_table(heads, cells)
