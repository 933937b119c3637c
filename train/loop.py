"""The training loop: gradient accumulation, optimizer steps, reports, checkpoints and evaluations.

It is independent of the model and of the data: both are reached through `Run`. Per-step features are callbacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from statistics import fmean

import torch
from accelerate import Accelerator
from torch import nn

from data.loader import Step
from data.types import Batch
from train.callbacks.base import Callback, MicroBatch, StepResult
from train.callbacks.nonfinite import Health, nan_grads_if_nonfinite
from train.checkpoint.checkpoint import Checkpoints
from train.checkpoint.resume import Origin
from train.collectives import agree_to_stop
from train.config import Config
from train.distributed import Mesh
from train.evaluation.evaluation import Summary
from train.faults.signals import Stop, note
from train.faults.watchdog import WATCHDOG
from train.metrics.meters import Meter, peak_operations
from train.metrics.recorder import Recorder
from train.optim import lr_factor, set_lr
from train.seeding import seed_draws
from train.task import TrainRequest, count_targets
from train.views import Rate, StepMethods, StepRates


@dataclass(frozen=True)
class Run:
    """A run that is ready to be trained. `task` and `optimizer` are wrapped by the engine."""

    config: Config
    origin: Origin  # the beginning or the checkpoint to resume from; holds the lock on the run's folder
    steps: Iterable[Step]  # one item per remaining optimizer step
    engine: Accelerator
    mesh: Mesh
    task: nn.Module
    optimizer: torch.optim.Optimizer
    rates: StepRates
    methods: StepMethods
    recorder: Recorder
    meter: Meter
    checkpoints: Checkpoints
    health: Health
    callbacks: Sequence[Callback]  # `health` among them
    evaluate: Callable[[], Summary] | None  # None without evaluation data
    forecast_gib: float | None  # forecast of a rank's peak memory; None without a forecast
    own_settings: dict[str, int]  # rows that set frames or pixels of their videos themselves, by configuration key


def fit(run: Run) -> int:
    """Train until `train.steps`.

    Returns 0, or the exit status (train.faults.signals) if a signal ended the run early; its state is then saved.
    Raises ValueError if a guard ends the run.
    """
    stop, first_step, last_step = note(run.config.train.signals), run.origin.step, run.config.train.steps
    if _evaluation_due(run, first_step) and not run.checkpoints.scored(first_step):
        _evaluate(run, first_step)
    run.task.train()  # from_pretrained leaves a model in evaluation mode, where layers are not checkpointed
    run.meter.restart()
    WATCHDOG.enter("data", first_step + 1)
    for step, data in enumerate(run.meter.steps(run.steps), start=first_step):
        lr = set_lr(run.optimizer, lr_factor(step, last_step, run.config.optim))
        status = _train_step(run, step, data, stop)
        if step + 1 == last_step and not _evaluation_due(run, step + 1):
            status = 0  # the run is complete, so there is nothing to resume
        _after_step(run, step + 1, lr=lr, ending=bool(status))
        WATCHDOG.enter("data", step + 2)
        if status:
            run.engine.print(f"stopped by a signal: {run.checkpoints.last}; continue with resume=auto")
            return status
    return 0


def _after_step(run: Run, done: int, *, lr: float, ending: bool) -> None:
    """Report, save and evaluate if due after `done` steps. A run that is `ending` early saves and does not evaluate."""
    train, health = run.config.train, run.health
    last, save_every = done == train.steps, train.save_every
    # Weights whose loss is not finite are not worth resuming from, unless no later checkpoint will follow.
    saving = last or (not health.streak and (ending or done % save_every == 0))
    if saving or done % train.log_every == 0 or health.streak:  # all steps before a checkpoint are reported
        _report(run, done, lr)
    health.check_streak(done)
    if not health.streak and done % save_every == 1 % save_every:  # a finite step has proven the weights saved last
        run.checkpoints.delete_superseded()
    if saving:
        with _paused(run):
            WATCHDOG.enter("save")
            run.checkpoints.save(done)
    if last:
        run.checkpoints.delete_superseded()
    if not ending and _evaluation_due(run, done):
        with _paused(run):
            _evaluate(run, done)


def _evaluation_due(run: Run, done: int) -> bool:
    """True at the beginning, at the end, and every `eval.every` steps."""
    every = run.config.eval.every
    return run.evaluate is not None and (done in (0, run.config.train.steps) or (every > 0 and done % every == 0))


@contextmanager
def _paused(run: Run) -> Iterator[None]:
    """Do not count the time spent inside as training time, and return the task to training mode afterwards."""
    with run.meter.paused():
        yield
    run.task.train()


def _train_step(run: Run, step: int, data: Step, stop: Stop) -> int:
    """Take one optimizer step. All ranks skip it if the gradient norm is not finite.

    Returns the exit status that the ranks have agreed on: 0, or that of a signal.
    """
    engine, rates = run.engine, _rates(run, step, data.batches)
    losses = _accumulate(run, step, data, rates)
    WATCHDOG.enter("optimizer")
    with run.meter.span("optimizer"):
        norm, status = agree_to_stop(engine, engine.clip_grad_norm_(run.task.parameters(), run.config.optim.clip), stop)
        if math.isfinite(norm):
            run.optimizer.step()  # no effect under DeepSpeed, which steps or skips within backward
        run.optimizer.zero_grad()
    result = StepResult(step + 1, data, rates, losses, norm)
    for callback in run.callbacks:
        callback.after_step(result)
    return status


def _rates(run: Run, step: int, batches: Sequence[Batch]) -> list[tuple[Rate, ...]]:
    """For each of this rank's micro-batches, one rate per view."""
    grids_by_batch = [batch.video_grid_thw_V3[:, 0].tolist() for batch in batches]
    return [
        run.rates.of_batch(step, micro_batch_index(run.mesh, turn), grids_V)
        for turn, grids_V in enumerate(grids_by_batch)
    ]


def micro_batch_index(mesh: Mesh, turn: int) -> int:
    """Index within the global step of this rank's micro-batch in accumulation step `turn`, as plans count."""
    return turn * mesh.data_size + mesh.data_rank


def _accumulate(run: Run, step: int, data: Step, batch_rates: Sequence[tuple[Rate, ...]]) -> list[torch.Tensor]:
    """Accumulate the gradients of this rank's micro-batches. Returns each one's mean loss per labelled token.

    The loss is summed over labelled tokens and divided by their number over all micro-batches and ranks. Every labelled
    token therefore has the same weight, whatever the pruning rates and the split into micro-batches. It is a mean over
    views.
    """
    engine, mesh = run.engine, run.mesh
    targets = engine.reduce(torch.tensor(float(count_targets(data.batches)), device=engine.device), reduction="sum")
    # Undoes the engine's mean over ranks and accumulation steps.
    scale = mesh.world * len(data.batches) / (targets / mesh.sequence_size).clamp_min(1)
    losses, method = [], run.methods(step)
    for turn, (batch, rates) in enumerate(zip(data.batches, batch_rates)):
        last = turn == len(data.batches) - 1
        engine.gradient_state._set_sync_gradients(last)
        index = micro_batch_index(mesh, turn)
        seed_draws("dropout", run.config.seed, step, index)
        WATCHDOG.enter("forward", step + 1, batch.ids)
        with nullcontext() if last else engine.no_sync(run.task):
            out = run.task(batch, request := TrainRequest(rates, method))
            WATCHDOG.enter("backward", step + 1, batch.ids)
            with run.meter.span("backward"):
                engine.backward(nan_grads_if_nonfinite(out.loss_sum) * scale)
        losses.append(out.loss_sum.detach() / max(out.targets, 1))
        done = MicroBatch(step + 1, index, batch, request, out)
        for callback in run.callbacks:
            callback.after_micro_batch(done)
    return losses


def _report(run: Run, step: int, lr: float) -> None:
    """Report the recorded values, the time of each span, and the throughput over all ranks since the last report."""
    elapsed, spans = run.meter.read()
    for name, seconds in spans.items():
        run.recorder.record(name, seconds, weight=1)
    device, world = run.engine.device, run.mesh.world
    shares = {"samples_per_s": ("samples", elapsed), "tokens_per_s": ("tokens/after", elapsed)}
    if peak := peak_operations(device):
        shares["mfu"] = ("operations", elapsed * peak * world)
    peak_memory = run.meter.memory.peak()
    values = run.recorder.report(
        step, shares, lr=lr, **({} if peak_memory is None else {"peak_memory_gib": peak_memory})
    )
    for callback in run.callbacks:
        callback.after_report(step, values)


def _evaluate(run: Run, step: int) -> None:
    """Evaluate the task, report the scores at every rate, and note the mean accuracy in the checkpoint of `step`."""
    assert run.evaluate
    WATCHDOG.enter("evaluate", step)
    summary = run.evaluate()
    run.recorder.quarantine_once(summary.quarantined, step)
    values: dict[str, float] = {"eval/quarantined": len(summary.quarantined)}
    if summary.areas:
        values["eval/score_area"] = fmean(summary.areas)
    for score in summary.scores:
        suffix = f"at_{score.rate:g}"
        values |= {f"eval/accuracy_{suffix}": score.accuracy, f"eval/loss_{suffix}": score.loss}
        values |= {f"eval/low_{suffix}": score.low, f"eval/high_{suffix}": score.high}
        values |= {f"eval/kind_{suffix}/{kind}": part.accuracy for kind, part in score.kinds.items()}
    run.recorder.report(step, None, **values)
    run.checkpoints.score(step, fmean(score.accuracy for score in summary.scores))
