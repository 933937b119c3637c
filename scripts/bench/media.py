"""A training run on broken media: each one is decoded or quarantined with a reason, and the run succeeds.

The `count` rows refer to pictures and videos (mp4, webm, avi, png, jpg) that have flipped bits, are truncated, or begin
with the header of another format, and to valid extremes: very wide pictures, 144 megapixels, 8k video. The figures are
the numbers of decoded and quarantined media, the reasons, the duration and the peak memory of the processes.
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

BATCH = 8  # samples per step
POLL_SECONDS = 0.1  # between two readings of the processes' memory


@dataclass
class Options:
    count: int = number(1000, least=20)  # media
    workers: int = number(2, least=0)  # data workers
    sample_seconds: float = number(30.0, above=0)  # as data.sample_seconds
    sample_gib: float = number(2.0, above=0)  # as data.sample_gib
    out: str | None = None  # JSON file for the figures


def media(options: Options) -> dict[str, Any]:
    """Decoded and quarantined media, reasons, seconds and peak GiB. ValueError if the run fails or loses a medium."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        make("qwen3_vl", folder / "model")
        (folder / "media").mkdir()
        rows = mutations.rows(folder / "media", options.count)
        begin = time.monotonic()
        peaks = _run(folder, rows, options)
        figures = _outcome(folder / "run", rows) | {"seconds": time.monotonic() - begin} | peaks
    print(f"{options.count} media: {figures['decoded']} decoded, {figures['quarantined']} quarantined")
    print(f"{figures['seconds']:.0f} s, peak {figures['trainer_gib']:.2f} GiB, {figures['worker_gib']:.2f} of a worker")
    for reason, count in list(figures["reasons"].items())[:12]:
        print(f"{count:5}  {reason}")
    return figures


def _run(folder: Path, rows: Path, options: Options) -> dict[str, float]:
    """Peak resident GiB of the training process and of its largest worker."""
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
            time.sleep(POLL_SECONDS)
    if run.returncode:
        last = (folder / "printed").read_text().strip().splitlines()[-1:]
        raise ValueError(f"the run ended with status {run.returncode}: {''.join(last)}")
    return peaks


def _resident(trainer: int) -> Iterator[tuple[str, float]]:
    try:
        process = psutil.Process(trainer)
        for name, one in (("trainer_gib", process), *(("worker_gib", child) for child in process.children())):
            yield name, one.memory_info().rss / 2**30
    except psutil.NoSuchProcess:
        return


def _outcome(run_dir: Path, rows: Path) -> dict[str, Any]:
    ids = {row["id"] for row in read_lines(rows)}
    used = {id for row in read_lines(run_dir / "batches.jsonl") for id in row["samples"]}
    lost = {row["id"]: row["reason"] for row in read_lines(run_dir / "quarantine.jsonl")}
    if silent := sorted(ids - used - lost.keys()):
        raise ValueError(f"{len(silent)} media were neither decoded nor quarantined, the first {silent[0]}")
    if both := sorted(used & lost.keys()):
        raise ValueError(f"{len(both)} media were decoded and quarantined, the first {both[0]}: {lost[both[0]]}")
    return {"decoded": len(used), "quarantined": len(lost), "reasons": by_reason(run_dir), "lost": lost}
