from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evs.policy import Policy
from scripts.make_tiny_model import make

ROOT = Path(__file__).parents[2]
BEFORE = Policy(method="pixel_delta", prune_at="input", scorer_dtype=None)
# Of a tiny Nemotron: vLLM builds only timm's towers, and on a CPU no experts without a gate.
SERVABLE = {"vision_width": 384, "vision_depth": 12, "vision_heads": 6, "vision_mlp": 1536, "experts": 0}
ENVIRONMENTS = Path(os.environ.get("EVS_VLLM_ENVS", ROOT / ".venv-vllm"))


@pytest.fixture(scope="session")
def environment(request):
    """A function from a vLLM version to the Python that has it; `pytest -m serving` builds what is not there."""

    def find(version: str) -> str:
        folder = ENVIRONMENTS / version
        if not folder.exists() and request.config.getoption("-m") != "serving":
            pytest.skip(f"no vLLM in {folder}: make test-serving builds it")
        subprocess.run([ROOT / "scripts" / "serving" / "vllm_env.sh", folder, version], check=True)
        return str(folder / "bin" / "python")

    return find


@pytest.fixture(scope="session", params=["qwen2_5_vl", "qwen3_vl"])
def checkpoint(request, tmp_path_factory) -> str:
    return str(make(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(params=["after_tower", "before_tower"])
def served(request, checkpoint, tmp_path) -> str:
    """The checkpoint, trained for tokens that are dropped after the tower and before it."""
    if request.param == "after_tower":
        return checkpoint
    BEFORE.write(shutil.copytree(checkpoint, tmp_path / "before_tower"))
    return str(tmp_path / "before_tower")


def drive(python: str, folder: Path, job: dict[str, Any], media: dict[str, np.ndarray] | None = None) -> Any:
    """What tests/serving/driver.py says to `job` under a vLLM's Python, with `folder` to work in."""
    folder.mkdir(exist_ok=True)
    (folder / "job.json").write_text(json.dumps(job))
    np.savez(folder / "media.npz", **media or {})
    command = [python, "-m", "tests.serving.driver", str(folder)]
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "said.json").read_text())
