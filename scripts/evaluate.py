"""Accuracy by pruning rate of a checkpoint, as a table and as JSON.

python scripts/evaluate.py model=DIR_OR_HUB_ID data=FILE rates=[0,0.5,0.75,0.9] [out=FILE.json]
torchrun --nproc-per-node 8 scripts/evaluate.py ...                            shares the samples out

Frames, pixels and positions are those that the checkpoint was trained on (evs.json beside its weights), unless given.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import cast

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from accelerate import Accelerator

from data.formats.columns import Columns
from data.media.frames import TIMES, FramePolicy
from evs.adapters import adapter_for
from evs.methods import METHODS, method_named
from train import cli
from train.build import build_encoder, build_evaluation, build_model, read_file
from train.config import ATTENTION, CELL, SCHEMES, DataConfig, EvalConfig, ModelConfig
from train.evaluate import Score
from train.ranges import names, number, pruning_rates
from train.report.curve import Curve, table
from train.served import beside, filled
from train.task import UptrainTask

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Options:
    model: str
    data: str
    rates: list[float] = pruning_rates(EvalConfig().rates)
    out: str | None = None  # JSON
    name: str | None = None  # of the curve; default: the model's folder
    dtype: str = names("bfloat16", *DTYPES)  # the server's, for weights and scores
    attention: str = names("sdpa", *ATTENTION, pattern=".+/.+")
    method: str | None = names(None, *METHODS)  # which tokens survive; this, scheme and frames: as evs.json says
    scheme: str | None = names(None, *SCHEMES)  # positions under pruning
    batch_size: int = number(1, least=1)
    limit: int | None = number(None, least=1)  # samples
    media_root: str | None = None
    columns: Columns = field(default_factory=Columns)  # their names in the data
    fps: float | None = number(None, above=0)
    min_frames: int | None = number(None, least=2)
    max_frames: int | None = number(None, least=2)
    min_pixels: int | None = number(None, least=CELL)
    max_pixels: int | None = number(None, least=CELL)
    total_pixels: int | None = number(None, least=CELL)
    times: str | None = names(None, *TIMES)
    workers: int = number(1, least=0)


def main(options: Options) -> None:
    options = filled(options, beside(options.model))
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
        media_root=options.media_root,
        columns=options.columns,
        workers=options.workers,
        **{each.name: getattr(options, each.name) for each in fields(FramePolicy)},
    )
    evaluation = EvalConfig(rates=options.rates, batch_size=options.batch_size, limit=options.limit)
    engine = Accelerator(cpu=not torch.cuda.is_available())
    encoder = build_encoder(config, data)
    model = build_model(config, DTYPES[options.dtype]).to(engine.device)
    method = method_named(cast(str, options.method), options.dtype)
    task = UptrainTask(model, adapter_for(model, cast(str, options.scheme)), method).eval()
    samples = read_file(options.data, data)
    return build_evaluation(engine, task, encoder, samples, data=data, config=evaluation)()


def write(path: Path, options: Options, name: str, scores: Sequence[Score]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"name": name, "model": options.model, "data": options.data, "scores": [s.as_dict() for s in scores]}
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main, Options)
