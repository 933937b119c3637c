"""Ends a run with too many unusable samples: `data.max_bad_fraction`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from train.callbacks.base import Callback, StepResult
from train.quarantine import normalized_reason, too_many_message

MIN_SAMPLES = 100  # the fraction is taken of at least this number of decoded samples


@dataclass
class BadSampleLimit(Callback):
    """Counts samples that decoding has quarantined: their number over all ranks, their reasons on this rank."""

    fraction: float
    file: Path  # quarantine.jsonl
    seen: float = 0
    bad: float = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def after_step(self, result: StepResult) -> None:
        """Count the reasons of the samples that this rank skipped in a step."""
        self.reasons.update(normalized_reason(sample.reason) for sample in result.data.quarantined)

    def after_report(self, step: int, values: dict[str, float]) -> None:
        """Add the counts of a report. Raise ValueError if too many of the samples so far were quarantined."""
        self.bad += values["quarantined/decoding"]
        self.seen += values["samples"] + values["quarantined/decoding"]
        if self.bad > self.fraction * max(self.seen, MIN_SAMPLES):
            counted = f"{self.bad:.0f} of the {self.seen:.0f} samples so far"
            raise ValueError(too_many_message(counted, self.fraction, self.reasons, self.file))
