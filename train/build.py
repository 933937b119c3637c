"""config -> objects, one function an object."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import nn

from data.batching.plans import BudgetPlan, Plan
from data.encoding.encoder import Encoder
from data.loader import PredictedTokens, Step, shard_loader, step_loader
from data.sample_limits import SampleLimits
from data.types import Quarantined, Sample
from evs.families import adapter_for, spec_of
from evs.methods import Method
from evs.pipeline import check_place
from evs.rates import RateDistribution
from train import preview as show
from train.checkpoint.checkpoint import Checkpoints, candidates
from train.checkpoint.resume import Origin, newest_shape, open_run
from train.checkpoint.run_identity import shape_of, split_step
from train.collectives import on_main
from train.config import (
    TOWERS,
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    frame_policy,
)
from train.cost import memory_forecast as preflight
from train.cost.dry_run import dry_run, largest_micro_batch, report
from train.cost.memory_forecast import Largest, largest
from train.cost.plans import build_kept, build_plan, freed_patches, schedule_of
from train.datasets import AuditedData, read_datasets
from train.distributed import build_engine, check_zero
from train.ema import Average
from train.evaluation.evaluation import Evaluation
from train.evaluation.scores import Score
from train.faults.bad_sample_limit import BadSampleLimit, check_audited
from train.faults.nonfinite import Health
from train.faults.watchdog import WATCHDOG
from train.loop import Parts
from train.metrics.memory import Memory, watch
from train.metrics.meters import Meter
from train.metrics.recorder import build_recorder
from train.model import base_model, build_empty_model, build_model, encoder_of, weight_dtype
from train.optim import build_optimizer
from train.plugins import build, build_methods
from train.task import UptrainTask
from train.views import StepMethods, StepRates, Views


@dataclass(frozen=True)
class Run:
    parts: Parts
    steps: Iterable[Step]
    first_step: int
    forecast_gib: float | None  # memory of a rank at its peak
    origin: Origin  # holds the lock on the run's folder


class Forecast(NamedTuple):
    """Bytes of one rank."""

    peak: float  # that the largest micro-batch needs
    free: float  # before weights are read


@dataclass(frozen=True)
class Prepared:
    """All of a run that is known before weights are read."""

    config: Config
    engine: Accelerator
    encoder: Encoder
    methods: StepMethods
    rates: StepRates
    train_set: AuditedData
    eval_set: AuditedData | None
    plan: Plan | BudgetPlan
    origin: Origin
    shape: dict[str, Any]  # train.checkpoint.run_identity
    forecast: Forecast | None


def build_run(config: Config) -> Run | None:
    """Everything of a run, cheapest first, so that a mistake shows before weights are read; None for preflight=only."""
    ready = prepare(config)
    return None if config.preflight == "only" else assemble(ready)


def prepare(config: Config) -> Prepared:
    """Check, read headers, plan the steps and forecast memory; the main rank prints what is about to be done."""
    check_zero(config.engine)
    methods, world = build_step_methods(config), int(os.environ.get("WORLD_SIZE", 1))
    run_dir = Path(config.run_dir)
    found = candidates(config.resume, run_dir / "checkpoints")
    split = split_step(config.train.accumulation, world, newest_shape(found), config.resume_changes)
    config = replace(config, train=replace(config.train, accumulation=split.accumulation))
    rates = build_step_rates(config, world)
    encoder = build_encoder(config.model, config.data)
    empty = build_empty_model(config.model, weight_dtype(config))
    for each in methods.methods:
        check_place(adapter_for(base_model(empty), config.model.scheme), each)
    WATCHDOG.at("meeting of the ranks")
    engine = build_engine(config.engine, config.train, config.optim.clip)
    WATCHDOG.at("choice of the checkpoint")
    origin = Origin() if config.preflight == "only" else open_run(engine, run_dir, found)
    shape = shape_of(config, split, empty)
    origin.check(engine, shape, config.resume_changes)
    WATCHDOG.at("index")
    train_set, eval_set = read_datasets(engine, config.data, encoder, config.seed)
    on_main(engine, lambda: check_datasets(config, train_set, eval_set))
    shape["data"] = train_set.fingerprint
    origin.check(engine, shape, config.resume_changes)
    latest = methods.latest
    kept = build_kept(latest, rates)
    plan = build_plan(config, engine, train_set, rates=rates, method=latest, empty=empty)
    forecast = None
    if config.data.audit and config.preflight != "off":
        freed = freed_patches(latest, base_model(empty).config)
        forecast = check_memory(
            config, engine, empty, largest(plan, train_set.index.sizes, rates.lowest(), kept, freed)
        )
    if config.show and engine.is_main_process:
        places = chain.from_iterable(plan.micro_batches(origin.step))
        print(show.parameters(empty))
        print(show.first_row(encoder, (train_set.samples[place] for place in places), rates.typical(), methods.first))
    return Prepared(
        config, engine, encoder, methods, rates, train_set, eval_set, plan, origin, shape, forecast
    )  # fmt: skip


def assemble(ready: Prepared) -> Run:
    """Read the weights, let the engine wrap them, and continue from where the run was."""
    config, engine, origin, run_dir = ready.config, ready.engine, ready.origin, Path(ready.config.run_dir)
    recorder = build_recorder(engine, config, origin.step)
    recorder.record("quarantined", recorder.quarantine_once(audited(ready), origin.step))
    memory = watch(engine.device)
    WATCHDOG.at("weights")
    model = build_model(config.model, weight_dtype(config), config.seed)
    adapter = adapter_for(base_model(model), config.model.scheme)
    bare = UptrainTask(model, adapter, ready.methods.first, config.train.distill)
    task, optimizer = engine.prepare(bare, build_optimizer(bare, adapter.spec, config.optim))
    average = build_average(bare, optimizer, config.train.ema)
    folder, keep = run_dir / "checkpoints", config.train.keep
    checkpoints = Checkpoints(engine, folder, keep, task, optimizer, ready.shape, average)
    if origin.checkpoint and origin.saved:
        WATCHDOG.at("checkpoint")
        checkpoints.load(origin.checkpoint, origin.saved)
    if config.preflight == "dry_run":
        run_dry(ready, task, optimizer, memory)
    sizes = ready.train_set.index.sizes
    span = {"first_step": origin.step, "last_step": config.train.steps}
    steps = step_loader(
        ready.train_set.samples,
        ready.encoder,
        ready.plan,
        **span,
        workers=config.data.workers,
        planned=PredictedTokens(sizes.unpruned(), isinstance(ready.plan, BudgetPlan)) if config.data.audit else None,
    )
    evaluate = None
    if ready.eval_set is not None:
        evaluate = build_evaluation(
            engine, task, ready.encoder, ready.eval_set.samples, data=config.data, config=config.eval
        )
    meter = build_meter(engine, config, base_model(model), memory, ready.methods.first)
    vocabulary = meter.config.get_text_config().vocab_size
    health = Health(engine, run_dir / "health.jsonl", config.train.max_bad_steps, vocabulary)
    bare.register_forward_pre_hook(lambda *_: WATCHDOG.progress())  # in evaluations too
    bad_sample_limit = BadSampleLimit(config.data.max_bad_fraction, run_dir / "quarantine.jsonl")
    parts = Parts(
        engine,
        task,
        optimizer,
        ready.rates,
        ready.methods,
        recorder,
        meter,
        health,
        bad_sample_limit,
        checkpoints,
        WATCHDOG,
        evaluate,
    )
    forecast_gib = None if ready.forecast is None else ready.forecast.peak / 2**30
    return Run(parts, steps, origin.step, forecast_gib, origin)


def run_dry(ready: Prepared, task: nn.Module, optimizer: Any, memory: Memory) -> None:
    """Print the memory that the largest micro-batch takes. Raises ValueError if it does not fit."""
    assert ready.forecast is not None
    config, engine, data = ready.config, ready.engine, ready.train_set
    kept = build_kept(ready.methods.latest, ready.rates)
    largest = largest_micro_batch(ready.plan, data.index.sizes, ready.rates, kept)
    (step,) = shard_loader(data.samples, ready.encoder, [largest.samples])
    (batch,) = step.batches
    views = Views(largest.rates(ready.rates, batch.video_grid_thw_V3[:, 0].tolist()), ready.methods.latest)
    measured = dry_run(engine, task, optimizer, (batch, views), config=config, memory=memory)
    engine.print(report(measured, *ready.forecast, config))


def audited(ready: Prepared) -> tuple[Quarantined, ...]:
    """Rows to train or to evaluate on that were put aside; each once, though both may lie in one file."""
    both = (ready.train_set, ready.eval_set)
    return tuple(dict.fromkeys(lost for usable in both if usable is not None for lost in usable.lost))


def build_average(task: nn.Module, optimizer: Any, decay: float | None) -> Average | None:
    """Of the task's trained weights after every step of the optimizer; None without a decay."""
    if decay is None:
        return None
    average = Average(task, decay)
    optimizer.optimizer.register_step_post_hook(lambda *_: average.update())
    return average


def check_datasets(config: Config, train_set: AuditedData, eval_set: AuditedData | None) -> None:
    """Print what is special about the rows. Raise ValueError if too many of a file cannot be used."""
    file = Path(config.run_dir) / "quarantine.jsonl"
    for name, found in (("data.train", train_set), ("data.eval", eval_set)):
        if found is not None:
            check_audited(name, found.rows, found.lost, config.data.max_bad_fraction, file)
            if own := int(found.index.own_settings_S.sum()):
                print(f"{name}: {own} of {found.rows} rows set the frames or pixels of their videos themselves")


def build_meter(engine: Accelerator, config: Config, model: Any, memory: Memory, method: Method) -> Meter:
    """Times the forward passes of the two towers, which are the model's own modules whatever wraps it."""
    lora, course = config.model.lora.r is not None, schedule_of(config, method, model)
    frozen = TOWERS if lora else config.model.freeze
    meter = Meter(engine.device, model.config, memory, frozen, lora, course)
    towers = spec_of(model.config).towers.of(model)
    meter.watch(towers.vision, "vision")
    meter.watch(towers.language, "language_model")
    return meter


def check_memory(config: Config, engine: Accelerator, empty: Any, batch: Largest) -> Forecast:
    """What the largest micro-batch needs, printed. Raises ValueError when it cannot fit."""
    parts = preflight.estimate(
        config, empty, base_model(empty).config, batch, world=engine.num_processes, device=engine.device
    )
    room = preflight.available(engine.device, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    engine.print(preflight.report(batch, parts, room))
    preflight.check(parts, room, config)
    return Forecast(parts.total, room)


def build_step_rates(config: Config, world: int) -> StepRates:
    train, distribution = config.train, build_rates(config.rate)
    rates = StepRates(
        distribution,
        world * train.accumulation,
        config.seed,
        train.rate_levels,
        views=train.views,
        anchor=train.anchor_rate,
        per_video=train.rate_per_video,
    )
    least, anchor, distill = rates.lowest()[0], train.anchor_rate, train.distill
    if distill.weight and distill.teacher == "view" and anchor is not None and least < anchor:
        raise ValueError(
            f"train.anchor_rate={anchor:g} is above rate {least:g}, which other views may have, and a teacher may not "
            f"be pruned more than its students: lower it, or raise the lowest rate of {config.rate}"
        )
    return rates


def build_encoder(model: ModelConfig, data: DataConfig) -> Encoder:
    """Rows to tensors, through the checkpoint's own processor."""
    limits = SampleLimits(data.sample_seconds, data.sample_gib)
    return encoder_of(model.path, frame_policy(data), model.revision, max_tokens=data.max_tokens, limits=limits)


def build_evaluation(
    engine: Accelerator,
    task: nn.Module,
    encoder: Encoder,
    samples: Sequence[Sample],
    *,
    data: DataConfig,
    config: EvalConfig,
) -> Callable[[], tuple[list[Score], list[Quarantined]]]:
    """A function that scores the task as it then is on the samples, every one once over all ranks, and gives those
    that could not be asked."""
    return partial(ask_about(engine, encoder, samples, data=data, config=config).scores, task)


def ask_about(
    engine: Accelerator, encoder: Encoder, samples: Sequence[Sample], *, data: DataConfig, config: EvalConfig
) -> Evaluation:
    """The questions that the samples ask, the first of them up to the limit."""
    limited = samples if config.limit is None else samples[: config.limit]
    size = {"batch_size": config.batch_size, "workers": data.workers, "new_tokens": config.new_tokens}
    return Evaluation(engine, encoder, limited, config.rates, **size)


def build_rates(node: dict[str, Any]) -> RateDistribution:
    """The distribution that a `rate` node describes."""
    return build("rate", node)


def build_step_methods(config: Config) -> StepMethods:
    """The method of the run, or those that its steps draw from. ValueError for methods that cannot take turns."""
    methods, views = build_methods(config.method), config.train.views
    if len(methods) > 1 and views > 1:
        raise ValueError(f"train.views={views} reads a video pruned by one method: leave out method.methods")
    return StepMethods(methods, config.seed)
