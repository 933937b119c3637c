"""Shared by all tests: where the recorded figures of other software lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def golden_file() -> Path:
    """Recorded counts, masks and positions of servers; EVS_GOLDEN overrides the place beside the checkout."""
    default = Path(__file__).parents[2] / "shared" / "golden" / "evs_golden.npz"
    path = Path(os.environ.get("EVS_GOLDEN", default))
    if not path.exists():
        pytest.skip(f"no golden file at {path}: set EVS_GOLDEN to its path")
    return path
