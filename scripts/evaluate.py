"""Accuracy of a checkpoint by pruning rate and by kind of question, with 95 % intervals.

python scripts/evaluate.py model=DIR_OR_HUB_ID data=FILE rates=[0,0.5,0.75,0.9] [out=FILE.json] [compare=BASE.json]
    [baselines=[frames,pixels,even]]                 compares pruning with fewer or smaller frames at equal tokens
torchrun --nproc-per-node 8 scripts/evaluate.py ...                            splits the samples over 8 processes

Every video is decoded and encoded once for all rates. Frames, pixels and positions default to those of the
checkpoint's training (evs.json next to its weights). Answers are appended to NAME.jsonl next to out=NAME.json, so that
the same command continues a run that was killed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from accelerate import Accelerator
from transformers import AutoConfig

from data.encoding.reduction import REDUCTIONS
from data.formats.columns import Columns
from data.media.frames import TIMES, FramePolicy
from evs.families import adapter_for
from evs.methods import METHODS, Method, method_named
from evs.pipeline import check_place
from train import cli
from train.build import build_encoder, build_model
from train.checkpoint.manifest import checksum
from train.config import ATTENTION, CELL, SCHEMES, DataConfig, EvalConfig, ModelConfig
from train.datasets import read_index, usable
from train.evaluation.answers import Answer, Answers
from train.evaluation.baselines import Baselines
from train.evaluation.evaluation import Evaluation, Outcome, build_questions
from train.evaluation.report import answers_of, words, write
from train.evaluation.scores import Difference, areas_of, differences, scores
from train.export.serving_metadata import checkpoint_policy, filled
from train.model import load_pretrained
from train.ranges import names, number, pruning_rates
from train.reports.equal_tokens import EqualTokens, equal_tokens_text
from train.task import UptrainTask

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Options:
    model: str  # a checkpoint's folder or Hub id
    data: str  # JSON, JSONL or Parquet, as for training
    rates: list[float] = pruning_rates(EvalConfig().rates)  # pruning rates to evaluate
    out: str | None = None  # JSON file for the scores
    compare: str | None = None  # JSON file of another model, evaluated on the same data
    # unpruned, at the tokens of each rate: fewer frames, smaller frames (pixels), or half of each (even)
    baselines: list[str] = names([], *REDUCTIONS)
    name: str | None = None  # name of the curve; default: the model's folder
    dtype: str = names("bfloat16", *DTYPES)  # of weights and scores, as in the server
    attention: str = names("sdpa", *ATTENTION, pattern=".+/.+")
    method: str | None = names(None, *METHODS)  # pruning method; default: that of evs.json, also for prune_at to times
    prune_at: Any = None  # merger, input or a block of the tower
    scheme: str | None = names(None, *SCHEMES)  # rule of positions under pruning
    batch_size: int = number(1, least=1)
    limit: int | None = number(None, least=1)  # largest number of samples
    new_tokens: int = number(64, least=1)  # longest generated answer, for rows that name a metric
    allow_missing: bool = False  # evaluate the other samples if media are missing or broken
    format: str = "auto"
    media_root: str | None = None
    columns: Columns = field(default_factory=Columns)  # names of the data's columns
    fps: float | None = number(None, above=0)
    min_frames: int | None = number(None, least=2)
    max_frames: int | None = number(None, least=2)
    min_pixels: int | None = number(None, least=CELL)
    max_pixels: int | None = number(None, least=CELL)
    total_pixels: int | None = number(None, least=CELL)
    times: str | None = names(None, *TIMES)
    workers: int = number(1, least=0)


def main(options: Options) -> None:
    options = filled(options, checkpoint_policy(options.model))
    base = answers_of(Path(options.compare)) if options.compare else None
    engine = Accelerator(cpu=not torch.cuda.is_available())
    evaluation = build(engine, options)
    baselines = Baselines(evaluation, method(options))
    check_baselines(options, baselines)
    load_task = cache(partial(task, engine, options))
    outcome = run(engine, evaluation, options, load_task)
    check_all_asked(options, [lost.reason for lost in outcome.lost], len(evaluation.samples))
    by_rate = scores(outcome.answers, evaluation.by_key)
    changes = compared(options, outcome.answers, base, evaluation) if base is not None else []
    name, areas = options.name or Path(options.model).name, areas_of(outcome.answers, evaluation.by_key)
    context = {"name": name, "model": options.model, "data": options.data, "left_out": len(outcome.lost)}
    engine.print(words(name, by_rate, changes, options.compare, areas))
    results = partial(write, context, by_rate, changes, areas=areas)
    if engine.is_main_process and options.out:  # before the baselines, which may fail
        results(Path(options.out))
    if options.baselines:
        compared_with = compared_baselines(engine, options, baselines, load_task, outcome.answers)
        engine.print("", *equal_tokens_text(compared_with), sep="\n\n")
        if engine.is_main_process and options.out:
            results(Path(options.out), baselines=compared_with)
    if options.out:
        engine.print(f"scores: {options.out}")


def build(engine: Accelerator, options: Options) -> Evaluation:
    """The questions, after all of their media have been opened."""
    data = DataConfig(
        format=options.format,
        media_root=options.media_root,
        columns=options.columns,
        workers=options.workers,
        **frames(options),
    )
    config = EvalConfig(
        rates=options.rates, batch_size=options.batch_size, limit=options.limit, new_tokens=options.new_tokens
    )
    encoder = build_encoder(model_config(options), data)
    collection, index = read_index(engine, "data", options.data, data, encoder)
    check_all_asked(options, [lost.reason for lost in index.quarantined], len(collection.samples))
    return build_questions(engine, encoder, usable(collection, index).samples, data=data, config=config)


def check_baselines(options: Options, baselines: Baselines) -> None:
    """Raise ValueError if baselines are requested and there is nothing to compare."""
    if options.baselines and not any(options.rates):
        raise ValueError(f"baselines={options.baselines} need a rate above 0: add one to rates=")
    if options.baselines and not baselines.samples:
        raise ValueError(f"baselines={options.baselines}: no sample of {options.data} has a video: remove baselines=")


def run(engine: Accelerator, evaluation: Evaluation, options: Options, load_task: Callable[[], UptrainTask]) -> Outcome:
    """Ask the questions that the answers next to `out` do not include yet."""
    log = Answers(engine, Path(options.out).with_suffix(".jsonl"), setting(options)) if options.out else None
    answered = log.begin() if log else []
    missing = evaluation.missing({answer.key for answer in answered})
    if answered:
        engine.print(f"{len(answered)} answers are there already; {sum(map(len, missing.values()))} samples to ask")
    outcome = evaluation.ask(load_task(), answered, log) if missing else evaluation.recall(answered)
    if log:
        log.finish(outcome.answers)
    return outcome


def compared(
    options: Options, ours: Sequence[Answer], base: Sequence[Answer], evaluation: Evaluation
) -> list[Difference]:
    try:
        return differences(ours, base, evaluation.by_key)
    except ValueError as error:
        raise ValueError(f"compare={options.compare} {error}") from None


def compared_baselines(
    engine: Accelerator,
    options: Options,
    baselines: Baselines,
    load_task: Callable[[], UptrainTask],
    pruned: Sequence[Answer],
) -> list[EqualTokens]:
    """Pruning against every baseline at every rate above 0; their answers are stored next to `out` as well."""
    results = []
    for kind in options.baselines:
        for rate in filter(None, options.rates):
            log, baseline = None, baselines.make(kind, rate)
            if options.out:
                path = Path(options.out).with_suffix(f".{kind}_{rate:g}.jsonl")
                log = Answers(engine, path, setting(options) | {"baseline": kind, "rate": rate})
            results.append(baselines.compare(baseline, baselines.ask(baseline, load_task, log), pruned))
    return results


def task(engine: Accelerator, options: Options) -> UptrainTask:
    model = build_model(model_config(options), DTYPES[options.dtype]).to(engine.device)
    adapter = adapter_for(model, cast(str, options.scheme))
    check_place(adapter, method(options))
    return UptrainTask(model, adapter, method(options))


def method(options: Options) -> Method:
    return method_named(cast(str, options.method), options.dtype, options.prune_at)


def check_all_asked(options: Options, reasons: Sequence[str], samples: int) -> None:
    """Raise ValueError if samples could not be used; with allow_missing=true print a line."""
    if reasons and not options.allow_missing:
        raise ValueError(
            f"{len(reasons)} of {samples} samples of {options.data} cannot be used (the first: {reasons[0]}): "
            "fetch them, or evaluate the rest with allow_missing=true"
        )
    if reasons:
        print(f"skipped: {len(reasons)} of {samples} samples (the first: {reasons[0]})", file=sys.stderr)


def setting(options: Options) -> dict[str, Any]:
    """Everything that an answer depends on in addition to its question and rate."""
    keys = ("dtype", "attention", "method", "prune_at", "scheme", "new_tokens")
    return {"weights": weights(options.model)} | {key: getattr(options, key) for key in keys} | frames(options)


def weights(model: str) -> str:
    """An identifier of the weights, independent of their path: checksums of the files, or the commit on the Hub."""
    files = sorted(Path(model).glob("*.safetensors"))
    return " ".join(map(checksum, files)) or str(load_pretrained(AutoConfig, str(model))._commit_hash)


def model_config(options: Options) -> ModelConfig:
    return ModelConfig(path=options.model, attention=options.attention, gradient_checkpointing=False)


def frames(options: Options) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in fields(FramePolicy)}


if __name__ == "__main__":
    cli.run(main, Options)
