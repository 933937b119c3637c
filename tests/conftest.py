"""Shared by all tests: where the recorded figures of other software lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden_file() -> Path:
    """Recorded counts, masks and positions of servers; EVS_GOLDEN overrides the place beside the checkout."""
    default = Path(__file__).parents[2] / "shared" / "golden" / "evs_golden.npz"
    path = Path(os.environ.get("EVS_GOLDEN", default))
    if not path.exists():
        pytest.skip(f"no golden file at {path}: set EVS_GOLDEN to its path")
    return path
