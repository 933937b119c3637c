"""fit(): accumulate, step, log, save, evaluate. Knows no model and no video."""

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
from data.types import Batch, Quarantined
from evs.methods.base import Method, depth
from train.checkpoint.checkpoint import Checkpoints
from train.collectives import agree_to_stop
from train.config import Config
from train.evaluation.scores import Score
from train.faults.bad_sample_limit import BadSampleLimit
from train.faults.nonfinite import Health, finite, nan_grads_if_nonfinite
from train.faults.signals import Stop, note
from train.faults.watchdog import Watchdog
from train.metrics.meters import Meter, peak_operations
from train.metrics.recorder import RATE_BUCKETS, Recorder, rate_bucket
from train.optim import lr_factor, set_lr
from train.seeding import seed_draws
from train.task import StepOutput, count_targets
from train.views import Rate, StepMethods, StepRates, Views


@dataclass(frozen=True)
class Parts:
    """What a run is made of, built and wrapped by the engine."""

    engine: Accelerator
    task: nn.Module
    optimizer: torch.optim.Optimizer
    rates: StepRates
    methods: StepMethods
    recorder: Recorder
    meter: Meter
    health: Health
    bad_sample_limit: BadSampleLimit
    checkpoints: Checkpoints
    watchdog: Watchdog
    evaluate: Callable[[], tuple[list[Score], list[Quarantined]]] | None


def fit(parts: Parts, steps: Iterable[Step], config: Config, first_step: int) -> int:
    """Train from `first_step` to `config.train.steps`; `steps` yields one item per optimizer step from there on.

    Returns 0, or the exit status of a run that was asked to end early and has saved (train.faults.signals).
    """
    stop = note(config.train.signals)
    if _evaluation_due(parts, first_step, config) and not parts.checkpoints.scored(first_step):
        _evaluate(parts, first_step)
    parts.task.train()  # from_pretrained leaves a model in evaluation mode, where layers are not checkpointed
    parts.meter.restart()
    parts.watchdog.at("data", first_step + 1)
    for step, data in enumerate(parts.meter.steps(steps), start=first_step):
        lr = set_lr(parts.optimizer, lr_factor(step, config.train.steps, config.optim))
        status = _train_step(parts, step, data, config, stop)
        if step + 1 == config.train.steps and not _evaluation_due(parts, step + 1, config):
            status = 0  # nothing is left to resume
        _after_step(parts, step + 1, config, lr, bool(status))
        parts.watchdog.at("data", step + 2)
        if status:
            parts.engine.print(f"asked to end: {parts.checkpoints.last}; resume=auto continues from there")
            return status
    return 0


def _after_step(parts: Parts, done: int, config: Config, lr: float, ending: bool) -> None:
    """Report, save and evaluate as often as asked; a run that ends early saves and leaves the rest."""
    last = done == config.train.steps
    # Weights at which the loss was not finite are no checkpoint to continue from; at the end there is no later one.
    saving = last or (not parts.health.streak and (ending or done % config.train.save_every == 0))
    if saving or done % config.train.log_every == 0 or parts.health.streak:  # a checkpoint leaves no step unreported
        _report(parts, done, lr)
    parts.health.check(done)
    every = config.train.save_every
    if not parts.health.streak and done % every == 1 % every:  # this step has proven the weights saved last
        parts.checkpoints.delete_superseded()
    if saving:
        with _paused(parts):
            parts.watchdog.at("save")
            parts.checkpoints.save(done)
    if last:
        parts.checkpoints.delete_superseded()
    if not ending and _evaluation_due(parts, done, config):
        with _paused(parts):
            _evaluate(parts, done)


def _evaluation_due(parts: Parts, done: int, config: Config) -> bool:
    """At the beginning, at the end, and every so many steps between; a run that died before it makes up for it."""
    often = config.eval.every and done % config.eval.every == 0
    return parts.evaluate is not None and bool(done in (0, config.train.steps) or often)


@contextmanager
def _paused(parts: Parts) -> Iterator[None]:
    """What runs inside is neither training time nor allowed to leave the task out of training mode."""
    with parts.meter.paused():
        yield
    parts.task.train()


def _train_step(parts: Parts, step: int, data: Step, config: Config, stop: Stop) -> int:
    """One optimizer step, left out on all ranks where its gradient is not finite; the exit status they agreed on."""
    engine, rates = parts.engine, _rates(parts, step, data.batches)
    losses = _accumulate(parts, step, data, rates, config.seed)
    parts.watchdog.at("optimizer")
    with parts.meter.span("optimizer"):
        norm, status = agree_to_stop(engine, engine.clip_grad_norm_(parts.task.parameters(), config.optim.clip), stop)
        if math.isfinite(norm):
            parts.optimizer.step()  # DeepSpeed has stepped within backward, or found the same and has not
        parts.optimizer.zero_grad()
    parts.recorder.record("samples", sum(len(batch.ids) for batch in data.batches))
    parts.recorder.quarantine(data.quarantined, step + 1)
    parts.recorder.record("quarantined/decoding", len(data.quarantined))  # the rest was known before
    parts.recorder.record("resized", data.resized)  # decoded to other numbers of tokens than headers promised
    parts.bad_sample_limit.note(data.quarantined)
    parts.recorder.record("grad_norm", norm, weight=1)
    parts.recorder.record("skipped", not math.isfinite(norm), weight=1)  # the share of the steps
    if not math.isfinite(norm):
        skipped = zip(rates, finite(torch.stack(losses).tolist()), (batch.ids for batch in data.batches))
        parts.health.skip(
            step + 1, norm, [{"rates": each, "loss": loss, "samples": ids} for each, loss, ids in skipped]
        )
    else:
        parts.health.streak = 0
    return status


def _rates(parts: Parts, step: int, batches: Sequence[Batch]) -> list[tuple[Rate, ...]]:
    """Of this rank's micro-batches, one a view."""
    grids = [batch.video_grid_thw_V3[:, 0].tolist() for batch in batches]
    return [parts.rates.of_batch(step, _place(parts.engine, turn), each) for turn, each in enumerate(grids)]


def _place(engine: Accelerator, turn: int) -> int:
    """Of a micro-batch in the step, as plans count."""
    return turn * engine.num_processes + engine.process_index


def _accumulate(
    parts: Parts, step: int, data: Step, rates_of: Sequence[tuple[Rate, ...]], seed: int
) -> list[torch.Tensor]:
    """Gradients of the step's micro-batches, and the loss of each. The loss is a sum over labelled tokens divided by
    their number over micro-batches and ranks, so that neither the rates nor the split of samples changes its weight;
    as a mean over views its scale does not follow their number."""
    engine = parts.engine
    targets = engine.reduce(torch.tensor(float(count_targets(data.batches)), device=engine.device), reduction="sum")
    # Engines average over ranks and accumulation steps; this undoes it.
    scale = engine.num_processes * len(data.batches) / targets.clamp_min(1)
    losses, method = [], parts.methods(step)
    for i, (batch, rates) in enumerate(zip(data.batches, rates_of)):
        last = i == len(data.batches) - 1
        engine.gradient_state._set_sync_gradients(last)
        place = _place(engine, i)
        seed_draws("dropout", seed, step, place)
        parts.watchdog.at("forward", step + 1, batch.ids)
        with nullcontext() if last else engine.no_sync(parts.task):
            out = parts.task(batch, Views(rates, method))
            parts.watchdog.at("backward", step + 1, batch.ids)
            with parts.meter.span("backward"):
                engine.backward(nan_grads_if_nonfinite(out.loss_sum) * scale)
        losses.append(out.loss_sum.detach() / max(out.targets, 1))
        parts.recorder.batch(step + 1, place, rates, batch.ids)
        _record(parts, batch, rates, out, method)
    return losses


def _record(parts: Parts, batch: Batch, rates: Sequence[Rate], out: StepOutput, method: Method) -> None:
    """What one micro-batch adds to the next report; rates of its videos count as their mean."""
    record = parts.recorder.record
    means = (rate if isinstance(rate, float) else fmean(rate) for rate in rates)
    for rate, kept, *sums in zip(means, out.kept, out.losses_K, out.correct_K):
        for name, value in zip(("loss", "token_accuracy"), sums):
            mean = value / max(out.targets, 1)
            record(name, mean, weight=out.targets)
            for bucket in RATE_BUCKETS:  # all of them, since ranks draw different rates and must record the same names
                its = bucket == rate_bucket(rate)
                record(f"{name}/rate_{bucket}", mean if its else 0.0, weight=out.targets if its else 0)
        record("rate", rate, weight=1)
        record("kept", kept / out.tokens, weight=out.tokens)
        record("tokens/before", out.tokens)
        record("tokens/after", kept)
    for name, value in out.divergences.items():
        record(f"divergence/{name}", value / max(out.targets, 1), weight=out.targets)
    for name, value in parts.meter.work(batch, out, depth(method)).items():
        record(name, value)


def _report(parts: Parts, step: int, lr: float) -> None:
    """What was recorded since the last report, where its time went, and how much was done in it over all ranks."""
    elapsed, spans = parts.meter.read()
    for name, seconds in spans.items():
        parts.recorder.record(name, seconds, weight=1)
    device, world = parts.engine.device, parts.engine.num_processes
    shares = {"samples_per_s": ("samples", elapsed), "tokens_per_s": ("tokens/after", elapsed)}
    if peak := peak_operations(device):
        shares["mfu"] = ("operations", elapsed * peak * world)
    peak_memory = parts.meter.memory.peak()
    values = parts.recorder.report(
        step, shares, lr=lr, **({} if peak_memory is None else {"peak_memory_gib": peak_memory})
    )
    parts.health.look(step, values)
    parts.bad_sample_limit.look(values)


def _evaluate(parts: Parts, step: int) -> None:
    assert parts.evaluate
    parts.watchdog.at("evaluate", step)
    scores, lost = parts.evaluate()
    parts.recorder.quarantine_once(lost, step)
    values: dict[str, float] = {"eval/quarantined": len(lost)}
    for score in scores:
        at = f"at_{score.rate:g}"
        values |= {f"eval/accuracy_{at}": score.accuracy, f"eval/loss_{at}": score.loss}
        values |= {f"eval/low_{at}": score.low, f"eval/high_{at}": score.high}
        values |= {f"eval/kind_{at}/{kind}": part.accuracy for kind, part in score.kinds.items()}
    parts.recorder.report(step, None, **values)
    parts.checkpoints.score(step, fmean(score.accuracy for score in scores))
