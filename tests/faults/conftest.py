"""Runs through the real command line, killed, starved and corrupted; all of them marked `faults`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FIXED = ["engine.precision=fp32", "show=false", "preflight=off", "tracker.tensorboard=false", "tracker.batches=true"]
SMALL = ["data.max_frames=4", "data.max_pixels=12544", "optim.lr=1e-4", "optim.warmup=0", "optim.final_lr=1"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)
            item.add_marker(pytest.mark.xdist_group("faults"))


@pytest.fixture
def mixed(clips, tmp_path) -> Path:
    """Twelve rows in turn of text alone, an image, and a video."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)).save(tmp_path / "image.png")
    rows: list[dict[str, Any]] = []
    for i in range(12):
        media = ({}, {"image": str(tmp_path / "image.png")}, {"video": str(clips[i % len(clips)])})[i % 3]
        question = "".join(f"<{kind}>\n" for kind in media) + f"What is number {i}?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "ABCD"[i % 4] + " it is" * (i % 3)}]
        rows.append({"id": f"row{i}", **media, "conversations": turns})
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def line(words, mixed) -> Callable[..., list[str]]:
    """The words of a small run on mixed rows, every batch listed; further words win."""

    def of(*more: str, run_dir: Path, **kwargs: Any) -> list[str]:
        return words(f"data.train={mixed}", *FIXED, *SMALL, *more, run_dir=run_dir, **kwargs)

    return of
