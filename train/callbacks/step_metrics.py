"""Records the metrics of every micro-batch and step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

from evs.methods.base import depth
from train.callbacks.base import Callback, MicroBatch, StepResult
from train.metrics.meters import Meter
from train.metrics.recorder import RATE_BUCKETS, Recorder, rate_bucket


@dataclass(frozen=True)
class StepMetrics(Callback):
    """Losses by rate, kept tokens, sample counts, gradient norm, and operations."""

    recorder: Recorder
    meter: Meter

    def after_micro_batch(self, done: MicroBatch) -> None:
        """Record its metrics. If the videos of a view have different rates, their mean is recorded."""
        out, record, rates = done.output, self.recorder.record, done.request.rates
        self.recorder.batch(done.step, done.index, rates, done.batch.ids)
        means = (rate if isinstance(rate, float) else fmean(rate) for rate in rates)
        for rate, kept, *sums in zip(means, out.kept, out.losses_K, out.correct_K):
            for name, value in zip(("loss", "token_accuracy"), sums):
                mean = value / max(out.targets, 1)
                record(name, mean, weight=out.targets)
                for bucket in RATE_BUCKETS:  # all buckets: ranks draw different rates but must record the same names
                    matches = bucket == rate_bucket(rate)
                    record(f"{name}/rate_{bucket}", mean if matches else 0.0, weight=out.targets if matches else 0)
            record("rate", rate, weight=1)
            record("kept", kept / out.tokens, weight=out.tokens)
            record("tokens/before", out.tokens)
            record("tokens/after", kept)
        for name, value in out.divergences.items():
            record(f"divergence/{name}", value / max(out.targets, 1), weight=out.targets)
        assert done.request.method is not None
        for name, value in self.meter.work(done.batch, out, depth(done.request.method)).items():
            record(name, value)

    def after_step(self, result: StepResult) -> None:
        record, data = self.recorder.record, result.data
        record("samples", sum(len(batch.ids) for batch in data.batches))
        self.recorder.quarantine(data.quarantined, result.step)
        record("quarantined/decoding", len(data.quarantined))  # without those quarantined by the audit
        record("resized", data.resized)  # samples whose number of tokens differs from their header's
        record("grad_norm", result.norm, weight=1)
        record("skipped", not math.isfinite(result.norm), weight=1)  # reported as the fraction of steps
