"""A run of train/run.py on generated clips, stopped half-way and resumed: does the loader keep up with the model?"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scripts.bench import models
from scripts.bench.processes import reason, run_limited
from scripts.bench.timing import ROOT
from scripts.bench.training_data import prepare
from train.ranges import number
from train.reports.summary import read_lines, summarize

TIMES = ("data", "vision", "language_model", "backward", "optimizer")


@dataclass
class Options:
    shape: str = "small"  # one of scripts/bench/models.py
    steps: int = number(200, least=2)  # of the run, which is stopped and resumed after half of them
    workers: int = number(4, least=0)  # data workers
    folder: str = "runs/benchmark/real_run"  # model, clips and the run
    out: str | None = None  # JSON file for the figures


def real_run(options: Options) -> dict[str, Any]:
    """Samples per second, the share of a step spent waiting for the loader, and seconds of both halves."""
    folder = Path(options.folder).resolve() / options.shape
    run, half = folder / "run", options.steps // 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = prepare(folder / "data", device, **sizes_of(models.build_shape(options.shape)))
    shutil.rmtree(run, ignore_errors=True)
    wall = [_train(options, data.model, data.ours, run, steps) for steps in (half, options.steps)]
    rows = [row for row in read_lines(run / "metrics.jsonl") if "time/step" in row]
    summary = summarize(run)
    steady = rows[1:] or rows  # the first report includes the warm-up
    seconds = {name: sum(row.get(f"time/{name}", 0) for row in steady) / len(steady) for name in ("step", *TIMES)}
    result = {
        "samples_per_s": summary.samples_per_s,
        "wait_share": seconds["data"] / seconds["step"],
        "seconds": seconds,
        "steps": summary.steps,
        "resumed_at": half,
        "wall_s": wall,  # of each half, with start and saving
        "peak_gib": summary.peak_memory_gib,
        "quarantined": summary.quarantined,
    }
    print(f"{summary.samples_per_s:.3g} samples/s, {result['wait_share']:.1%} of a step waits for the loader")
    return result


def sizes_of(shape: models.Shape) -> dict[str, Any]:
    """The shape as sizes of scripts/make_tiny_model.py."""
    text = ("text_layers", "text_width", "text_heads", "text_kv_heads", "text_mlp")
    vision = ("vision_depth", "vision_width", "vision_heads", "vision_mlp")
    sizes = dict(zip(text, shape.text)) | dict(zip(vision, shape.vision))
    return sizes | {"vocabulary": shape.vocabulary, "tied": shape.tied}


def _train(options: Options, model: Path, rows: Path, run: Path, steps: int) -> float:
    """Seconds of the run up to `steps`. It trains with LoRA, so that a large model fits one GPU and checkpoints are
    small."""
    words = [
        *("+experiment=qwen_evs_uptrain", "engine=none", f"model.path={model}", f"data.train={rows}", f"run_dir={run}"),
        *(f"train.steps={steps}", "train.batch_size=2", "train.accumulation=1", "model.lora.r=64", "resume=auto"),
        *(f"train.log_every={max(1, options.steps // 20)}", f"data.workers={options.workers}", "eval.every=0"),
        *("tracker.wandb=false", "optim.warmup=0", "optim.final_lr=1", "show=false"),
    ]
    log, begin = run.with_name("log.txt"), time.monotonic()
    status = run_limited([sys.executable, str(ROOT / "train" / "run.py"), *words], log, None, ROOT)
    if status:
        raise ValueError(f"train/run.py ended with status {status}: {reason(log.read_text())}")
    return time.monotonic() - begin
