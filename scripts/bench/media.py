"""A run of train/run.py over broken media: every one is decoded or left out with a reason, and the run ends well.

count= rows: pictures and videos (mp4, webm, avi, png, jpg) with flipped bits, cut off or of a foreign beginning, wide
ones, 144 megapixels, 8k video. It says how many were used, why the others were not, how long it took and what memory
the processes had at their peak.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from scripts.bench import mutations
from scripts.bench.timing import ROOT
from scripts.make_tiny_model import make
from train.ranges import number
from train.reports.summary import by_reason, read_lines

BATCH, LOOK = 8, 0.1  # samples a step; seconds between two looks at the processes


@dataclass
class Options:
    count: int = number(1000, least=20)
    workers: int = number(2, least=0)  # processes that decode
    sample_seconds: float = number(30.0, above=0)  # as data.sample_seconds
    sample_gib: float = number(2.0, above=0)  # as data.sample_gib
    out: str | None = None  # JSON


def media(options: Options) -> dict[str, Any]:
    """What became of the media. ValueError where the run fails or any medium is neither used nor left out."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        make("qwen3_vl", folder / "model")
        (folder / "media").mkdir()
        rows = mutations.rows(folder / "media", options.count)
        begin = time.monotonic()
        peaks = _run(folder, rows, options)
        found = _outcome(folder / "run", rows) | {"seconds": time.monotonic() - begin} | peaks
    print(
        f"{options.count} media: {found['decoded']} decoded, {found['left_out']} left out; {found['seconds']:.0f} s, "
        f"at the peak {found['trainer_gib']:.2f} GiB resident and {found['worker_gib']:.2f} of a worker"
    )
    for reason, count in list(found["reasons"].items())[:12]:
        print(f"{count:5}  {reason}")
    return found


def _run(folder: Path, rows: Path, options: Options) -> dict[str, float]:
    """GiB resident at the peak of the training process, and of the largest of its workers."""
    words = ["+experiment=qwen3_evs_uptrain", "engine=none", f"model.path={folder / 'model'}", f"data.train={rows}"]
    words += [f"run_dir={folder / 'run'}", f"data.workers={options.workers}", "data.max_frames=4"]
    words += ["data.max_pixels=12544", f"data.sample_seconds={options.sample_seconds}", "data.max_bad_fraction=1"]
    words += [f"data.sample_gib={options.sample_gib}", f"train.steps={-(-options.count // BATCH)}", "show=false"]
    words += [f"train.batch_size={BATCH}", "train.accumulation=1", "train.save_every=1000", "tracker.batches=true"]
    words += ["tracker.wandb=false", "tracker.tensorboard=false"]
    peaks = {"trainer_gib": 0.0, "worker_gib": 0.0}
    with (folder / "printed").open("w") as printed:
        run = subprocess.Popen(
            [sys.executable, str(ROOT / "train" / "run.py"), *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
        while run.poll() is None:
            for name, gib in _resident(run.pid):
                peaks[name] = max(peaks[name], gib)
            time.sleep(LOOK)
    if run.returncode:
        last = (folder / "printed").read_text().strip().splitlines()[-1:]
        raise ValueError(f"the run ended with status {run.returncode}: {''.join(last)}")
    return peaks


def _resident(trainer: int) -> Iterator[tuple[str, float]]:
    try:
        process = psutil.Process(trainer)
        for name, each in (("trainer_gib", process), *(("worker_gib", child) for child in process.children())):
            yield name, each.memory_info().rss / 2**30
    except psutil.NoSuchProcess:
        return


def _outcome(run_dir: Path, rows: Path) -> dict[str, Any]:
    asked = {row["id"] for row in read_lines(rows)}
    used = {id for row in read_lines(run_dir / "batches.jsonl") for id in row["samples"]}
    lost = {row["id"]: row["reason"] for row in read_lines(run_dir / "quarantine.jsonl")}
    if silent := sorted(asked - used - lost.keys()):
        raise ValueError(f"{len(silent)} media were neither used nor left out with a reason, the first {silent[0]}")
    if both := sorted(used & lost.keys()):
        raise ValueError(f"{len(both)} media were used and left out, the first {both[0]}: {lost[both[0]]}")
    return {"decoded": len(used), "left_out": len(lost), "reasons": by_reason(run_dir), "lost": lost}
