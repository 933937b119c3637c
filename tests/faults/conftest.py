"""Runs through the real command line, killed, starved and corrupted; all of them marked `faults`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent
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


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which the commands of a SLURM of one node work; installed from the system's packages."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("a SLURM of our own needs root and apt-get")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # not pytest's, which munge's user may not enter
    started = subprocess.run([HERE / "slurm.sh", "start", folder], capture_output=True, text=True, timeout=300)
    if started.returncode:
        pytest.skip(f"no SLURM: {(started.stderr or started.stdout).strip().splitlines()[-1]}")
    yield {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    subprocess.run([HERE / "slurm.sh", "stop", folder], timeout=60, check=True)
    shutil.rmtree(folder, ignore_errors=True)  # daemons may still be writing their last lines


@pytest.fixture
def hosts() -> Iterator[dict[str, str]]:
    """Two network namespaces that reach each other and nothing else: address by name."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    found = {f"evs{os.getpid()}a": "10.231.77.1", f"evs{os.getpid()}b": "10.231.77.2"}
    (a, b), ip = found, ["ip", "link", "add"]
    made = subprocess.run(["ip", "netns", "add", a], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no network namespaces: {made.stderr.strip()}")
    subprocess.run(["ip", "netns", "add", b], check=True)
    subprocess.run([*ip, "veth0", "netns", a, "type", "veth", "peer", "name", "veth0", "netns", b], check=True)
    for name, address in found.items():
        for words in (f"addr add {address}/24 dev veth0", "link set veth0 up", "link set lo up"):
            subprocess.run(["ip", "-n", name, *words.split()], check=True)
    yield found
    for name in found:
        subprocess.run(["ip", "netns", "delete", name], check=True)
