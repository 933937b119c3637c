"""Accuracy by pruning rate of a checkpoint, as a table and as JSON.

python scripts/evaluate.py model=DIR_OR_HUB_ID data=FILE rates=[0,0.5,0.75,0.9] [out=FILE.json]
torchrun --nproc-per-node 8 scripts/evaluate.py ...                            shares the samples out
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from accelerate import Accelerator

from evs import FrameDelta
from evs.adapters import adapter_for
from train import cli
from train.build import build_encoder, build_evaluation, build_model
from train.config import DataConfig, EvalConfig, ModelConfig, check_rates
from train.evaluate import Score
from train.report.curve import Curve, table
from train.task import UptrainTask

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Options:
    model: str
    data: str
    rates: list[float] = field(default_factory=lambda: EvalConfig().rates)
    out: str | None = None  # JSON
    name: str | None = None  # of the curve; default: the model's folder
    dtype: str = "bfloat16"  # the server's, for weights and scores
    attention: str = "sdpa"
    scheme: str = "preserve"  # positions under pruning
    batch_size: int = 1
    limit: int | None = None  # samples
    media_root: str | None = None
    fps: float = DataConfig.fps
    min_frames: int = DataConfig.min_frames
    max_frames: int = DataConfig.max_frames
    min_pixels: int | None = None
    max_pixels: int | None = None
    workers: int = 1


def main(options: Options) -> None:
    check_rates("rates", options.rates)
    if options.dtype not in DTYPES:
        raise ValueError(f"dtype={options.dtype} is unknown: use one of {', '.join(DTYPES)}")
    scores = run(options)
    name = options.name or Path(options.model).name
    print(table([Curve(name, {score.rate: score.accuracy for score in scores})]))
    for score in scores:
        kept = f"{100 * score.kept:.1f} % of tokens kept"
        print(f"rate {score.rate:g}: loss {score.loss:.4f}, {kept}, {score.answers} answers")
    if options.out:
        write(Path(options.out), options, name, scores)
        print(f"scores: {options.out}")


def run(options: Options) -> list[Score]:
    """One Score a rate."""
    config = ModelConfig(path=options.model, attention=options.attention, gradient_checkpointing=False)
    data = DataConfig(
        eval=options.data,
        media_root=options.media_root,
        fps=options.fps,
        min_frames=options.min_frames,
        max_frames=options.max_frames,
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
        workers=options.workers,
    )
    evaluation = EvalConfig(rates=options.rates, batch_size=options.batch_size, limit=options.limit)
    engine = Accelerator(cpu=not torch.cuda.is_available())
    encoder = build_encoder(config, data)
    model = build_model(config, DTYPES[options.dtype]).to(engine.device)
    task = UptrainTask(model, adapter_for(model, options.scheme), FrameDelta(options.dtype)).eval()
    return build_evaluation(engine, task, encoder, data, evaluation)()


def write(path: Path, options: Options, name: str, scores: Sequence[Score]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"name": name, "model": options.model, "data": options.data, "scores": [s.as_dict() for s in scores]}
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main, Options)
