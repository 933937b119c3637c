"""What makes two runs the same run: losses, gradients, rates and samples of every step."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.runs import rows


def trajectory(run_dir: Path, name: str) -> list[float]:
    return [row[name] for row in rows(run_dir) if "samples" in row]


def assert_same_trajectory(one: Path, other: Path, rel: float = 1e-6) -> None:
    """Every step once, with the same samples at the same rates, and losses that differ by `rel` at most."""
    steps = trajectory(one, "step")
    assert steps == list(range(1, len(steps) + 1)) == trajectory(other, "step")
    assert rows(one, "batches.jsonl") == rows(other, "batches.jsonl")
    for name in ("loss", "grad_norm", "rate"):
        tolerance = rel if name != "grad_norm" else 10 * rel
        assert trajectory(one, name) == pytest.approx(trajectory(other, name), rel=tolerance)


def kill_all(pid: int) -> None:
    """SIGKILL for a process and everything under it."""
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
