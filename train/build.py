"""Builds the objects of a run from its configuration."""

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
from data.types import Quarantined
from evs.families import adapter_for, spec_of
from evs.methods import Method
from evs.pipeline import check_place
from train import preview
from train.callbacks.bad_sample_limit import BadSampleLimit
from train.callbacks.nonfinite import Health
from train.callbacks.step_metrics import StepMetrics
from train.checkpoint.checkpoint import Checkpoints, candidates
from train.checkpoint.resume import Origin, newest_shape, open_run
from train.checkpoint.run_identity import StepSplit, shape_of, split_step
from train.collectives import on_main
from train.config import TOWERS, Config, DataConfig, ModelConfig, frame_policy
from train.cost import memory_forecast
from train.cost.dry_run import dry_run, largest_micro_batch, report
from train.cost.memory_forecast import largest
from train.cost.peak_memory import Memory, watch
from train.cost.plans import build_kept, build_plan, freed_patches, schedule_of
from train.datasets import AuditedData, check_datasets, read_datasets
from train.distributed import (
    Mesh,
    SharedItems,
    build_engine,
    build_mesh,
    check_sequence_parallel,
    check_zero,
    data_parallel_size,
)
from train.ema import Average
from train.evaluation.evaluation import Summary, build_questions
from train.faults.watchdog import WATCHDOG
from train.loop import Run
from train.metrics.meters import Meter
from train.metrics.recorder import build_recorder
from train.model import base_model, build_empty_model, build_model, encoder_of, exchange_heads, weight_dtype
from train.optim import build_optimizer
from train.plugins import build_step_methods, build_step_rates
from train.task import TrainRequest, UptrainTask
from train.views import StepMethods, StepRates


class Forecast(NamedTuple):
    """Memory of one rank in bytes."""

    peak: float  # forecast for the largest micro-batch
    free: float  # measured before weights are loaded


@dataclass(frozen=True)
class Prepared:
    """A run before its weights are loaded."""

    config: Config
    engine: Accelerator
    mesh: Mesh
    encoder: Encoder
    methods: StepMethods
    rates: StepRates
    train_set: AuditedData
    eval_set: AuditedData | None
    plan: Plan | BudgetPlan
    origin: Origin
    shape: dict[str, Any]  # see train.checkpoint.run_identity
    forecast: Forecast | None

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run_dir)


def build_run(config: Config) -> Run | None:
    """The run of a configuration, or None for preflight=only.

    The cheapest steps come first, so that mistakes are reported before weights are loaded. Raise ValueError for them.
    """
    ready = prepare(config)
    return None if config.preflight == "only" else assemble(ready)


def prepare(config: Config) -> Prepared:
    """Check the configuration, open the run's folder, read headers, plan the steps and forecast memory.

    The main rank prints the forecast and a preview of the first row.
    """
    check_zero(config.engine)
    methods, sequence = build_step_methods(config), config.engine.sequence_parallel
    ranks = data_parallel_size(config.engine, int(os.environ.get("WORLD_SIZE", 1)))
    checkpoints = candidates(config.resume, Path(config.run_dir) / "checkpoints")
    split = split_step(config.train.accumulation, ranks, newest_shape(checkpoints), config.resume_changes)
    split = replace(split, sequence=sequence)
    config = replace(config, train=replace(config.train, accumulation=split.accumulation))
    rates, encoder = build_step_rates(config, ranks), build_encoder(config.model, config.data)
    empty = build_empty_model(config.model, weight_dtype(config))
    check_sequence_parallel(sequence, base_model(empty).config)
    for method in methods.methods:
        check_place(adapter_for(base_model(empty), config.model.scheme), method)
    WATCHDOG.enter("meeting of the ranks")
    engine = build_engine(config.engine, config.train, config.optim.clip)
    mesh = build_mesh(engine, config.engine)
    origin, shape = open_origin(config, engine, checkpoints, split, empty)
    WATCHDOG.enter("index")
    train_set, eval_set = read_datasets(engine, config.data, encoder, config.seed)
    on_main(engine, lambda: check_datasets(config, train_set, eval_set))
    shape["data"] = train_set.fingerprint
    origin.check(engine, shape, config.resume_changes)
    plan = build_plan(config, mesh, train_set, rates=rates, method=methods.latest, empty=empty)
    ready = Prepared(config, engine, mesh, encoder, methods, rates, train_set, eval_set, plan, origin, shape, None)
    if config.data.audit and config.preflight != "off":
        ready = replace(ready, forecast=check_memory(ready, empty))
    if config.show and engine.is_main_process:
        show_preview(ready, empty)
    return ready


def open_origin(
    config: Config, engine: Accelerator, checkpoints: Sequence[Path], split: StepSplit, empty: nn.Module
) -> tuple[Origin, dict[str, Any]]:
    """(the beginning or the checkpoint to resume from, the run's shape without its data).

    Raise ValueError if the folder is in use, or if the checkpoint belongs to another run.
    """
    WATCHDOG.enter("choice of the checkpoint")
    origin = Origin() if config.preflight == "only" else open_run(engine, Path(config.run_dir), checkpoints)
    shape = shape_of(config, split, empty)
    origin.check(engine, shape, config.resume_changes)
    return origin, shape


def show_preview(ready: Prepared, empty: nn.Module) -> None:
    """Print the numbers of trained parameters and the first usable row of the first step."""
    samples = (ready.train_set.samples[i] for i in chain.from_iterable(ready.plan.micro_batches(ready.origin.step)))
    print(preview.parameters(empty))
    print(preview.first_row(ready.encoder, samples, ready.rates.typical(), ready.methods.first))


def assemble(ready: Prepared) -> Run:
    """Load the weights, let the engine wrap them, and restore the checkpoint that the run continues from, if any."""
    config, engine, origin = ready.config, ready.engine, ready.origin
    recorder = build_recorder(engine, config, origin.step, ready.mesh)
    recorder.record("quarantined", recorder.quarantine_once(audited(ready), origin.step))
    memory = watch(engine.device)
    WATCHDOG.enter("weights")
    model = build_model(config.model, weight_dtype(config), config.seed)
    if ready.mesh.group is not None:
        exchange_heads(model)
    adapter = adapter_for(base_model(model), config.model.scheme)
    distill, offload = config.train.distill, config.train.offload_activations
    bare = UptrainTask(model, adapter, ready.methods.first, distill, ready.mesh.group, offload=offload)
    bare.register_forward_pre_hook(lambda *_: WATCHDOG.progress())  # in evaluations too
    task, optimizer = engine.prepare(bare, build_optimizer(bare, adapter.spec, config.optim))
    checkpoints = build_checkpoints(ready, bare, task, optimizer)
    if origin.checkpoint and origin.saved:
        WATCHDOG.enter("checkpoint")
        checkpoints.load(origin.checkpoint, origin.saved)
    if config.preflight == "dry_run":
        run_dry(ready, task, optimizer, memory)
    vocabulary = base_model(model).config.get_text_config().vocab_size
    limit = config.train.max_bad_steps
    health = Health(engine, ready.run_dir / "health.jsonl", limit, vocabulary, mesh=ready.mesh)
    bad_samples = BadSampleLimit(config.data.max_bad_fraction, ready.run_dir / "quarantine.jsonl")
    meter = build_meter(engine, config, base_model(model), memory, ready.methods.first)
    return Run(
        config=config,
        origin=origin,
        steps=build_steps(ready),
        engine=engine,
        mesh=ready.mesh,
        task=task,
        optimizer=optimizer,
        rates=ready.rates,
        methods=ready.methods,
        recorder=recorder,
        meter=meter,
        checkpoints=checkpoints,
        health=health,
        callbacks=[StepMetrics(recorder, meter), health, bad_samples],
        evaluate=build_evaluation(ready, task),
        forecast_gib=None if ready.forecast is None else ready.forecast.peak / 2**30,
        own_settings=own_settings(ready),
    )


def build_checkpoints(ready: Prepared, bare: nn.Module, task: nn.Module, optimizer: Any) -> Checkpoints:
    """The run's checkpoints. `bare` is the task before the engine wrapped it."""
    train = ready.config.train
    average = None if train.ema is None else Average(bare, train.ema)
    if average is not None:
        optimizer.optimizer.register_step_post_hook(lambda *_: average.update())
    return Checkpoints(ready.engine, ready.run_dir / "checkpoints", train.keep, task, optimizer, ready.shape, average)


def build_steps(ready: Prepared) -> Iterable[Step]:
    """The remaining steps of the run, decoded by workers."""
    config, sizes = ready.config, ready.train_set.index.sizes
    steps = step_loader(
        ready.train_set.samples,
        ready.encoder,
        ready.plan,
        first_step=ready.origin.step,
        last_step=config.train.steps,
        workers=config.data.workers,
        planned=PredictedTokens(sizes.unpruned(), isinstance(ready.plan, BudgetPlan)) if config.data.audit else None,
    )
    return steps if ready.mesh.group is None else SharedItems(steps, len(steps), ready.mesh)


def run_dry(ready: Prepared, task: nn.Module, optimizer: Any, memory: Memory) -> None:
    """Print the memory that the largest micro-batch needs. Raise ValueError if it does not fit."""
    assert ready.forecast is not None
    config, engine, data = ready.config, ready.engine, ready.train_set
    kept = build_kept(ready.methods.latest, ready.rates)
    micro_batch = largest_micro_batch(ready.plan, data.index.sizes, ready.rates, kept)
    (step,) = shard_loader(data.samples, ready.encoder, [micro_batch.samples])
    (batch,) = step.batches
    rates = micro_batch.rates(ready.rates, batch.video_grid_thw_V3[:, 0].tolist())
    request = TrainRequest(rates, ready.methods.latest)
    measured = dry_run(engine, task, optimizer, (batch, request), config=config, memory=memory)
    engine.print(report(measured, *ready.forecast, config))


def audited(ready: Prepared) -> tuple[Quarantined, ...]:
    """Quarantined rows of the training and the evaluation set, each once even if both sets come from one file."""
    sets = [data for data in (ready.train_set, ready.eval_set) if data is not None]
    return tuple(dict.fromkeys(chain.from_iterable(data.lost for data in sets)))


def own_settings(ready: Prepared) -> dict[str, int]:
    """The number of rows that set the frames or pixels of their videos themselves, by configuration key."""
    sets = {"data.train": ready.train_set, "data.eval": ready.eval_set}
    return {key: data.own_settings for key, data in sets.items() if data is not None}


def build_meter(engine: Accelerator, config: Config, model: Any, memory: Memory, method: Method) -> Meter:
    """A meter that times the forward passes of the model's vision tower and language model."""
    lora, schedule = config.model.lora.r is not None, schedule_of(config, method, model)
    frozen = TOWERS if lora else config.model.freeze
    meter = Meter(engine.device, model.config, memory, frozen, lora, schedule)
    towers = spec_of(model.config).towers.of(model)
    meter.watch(towers.vision, "vision")
    meter.watch(towers.language, "language_model")
    return meter


def check_memory(ready: Prepared, empty: nn.Module) -> Forecast:
    """Print the forecast of the memory that the largest micro-batch needs. Raise ValueError if it cannot fit."""
    config, engine, hf_config = ready.config, ready.engine, base_model(empty).config
    kept, freed = build_kept(ready.methods.latest, ready.rates), freed_patches(ready.methods.latest, hf_config)
    batch = largest(ready.plan, ready.train_set.index.sizes, ready.rates.lowest(), kept, freed)
    methods, world = ready.methods.methods, engine.num_processes
    estimate = memory_forecast.estimate(
        config, empty, hf_config, batch, world=world, device=engine.device, methods=methods
    )
    free = memory_forecast.available(engine.device, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    engine.print(memory_forecast.report(batch, estimate, free))
    memory_forecast.check(estimate, free, config)
    return Forecast(estimate.total, free)


def build_encoder(model: ModelConfig, data: DataConfig) -> Encoder:
    """An encoder of rows into tensors that uses the checkpoint's own processor."""
    limits = SampleLimits(data.sample_seconds, data.sample_gib)
    return encoder_of(model.path, frame_policy(data), model.revision, max_tokens=data.max_tokens, limits=limits)


def build_evaluation(ready: Prepared, task: nn.Module) -> Callable[[], Summary] | None:
    """A function that evaluates the current weights of `task`; None without evaluation data."""
    if ready.eval_set is None:
        return None
    config, samples = ready.config, ready.eval_set.samples
    evaluation = build_questions(ready.engine, ready.encoder, samples, data=config.data, config=config.eval)
    return partial(evaluation.summarize, task)
