"""Ends a run with too many unusable samples: `data.max_bad_fraction`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data.types import Quarantined
from train.callbacks import Callback, StepResult
from train.metrics.jsonl import append_new_lines
from train.reports.summary import kind_of

MIN_SAMPLES = 100  # the fraction is taken of at least this number of decoded samples
ALWAYS_ALLOWED = 3  # bad rows of a data set that never end a run, so that small files are not refused for one


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
        self.reasons.update(kind_of(sample.reason) for sample in result.data.quarantined)

    def after_report(self, step: int, values: dict[str, float]) -> None:
        """Add the counts of a report. Raise ValueError if too many of the samples so far were quarantined."""
        self.bad += values["quarantined/decoding"]
        self.seen += values["samples"] + values["quarantined/decoding"]
        if self.bad > self.fraction * max(self.seen, MIN_SAMPLES):
            counted = f"{self.bad:.0f} of the {self.seen:.0f} samples so far"
            raise ValueError(_excess(counted, self.fraction, self.reasons, self.file))


def check_audited(name: str, rows: int, quarantined: Sequence[Quarantined], fraction: float, file: Path) -> None:
    """Print how many of the `rows` of the data set `name` are quarantined.

    Raise ValueError, after writing the reasons to `file`, if they are more than the fraction. A few bad rows are always
    allowed unless the fraction is 0.
    """
    counted = f"{name}: {len(quarantined)} of {rows} rows"
    reasons = Counter(kind_of(sample.reason) for sample in quarantined)
    if len(quarantined) > max(fraction * rows, ALWAYS_ALLOWED if fraction else 0):
        file.parent.mkdir(parents=True, exist_ok=True)
        append_new_lines(file, [{"step": 0, **asdict(sample)} for sample in quarantined])
        raise ValueError(_excess(counted, fraction, reasons, file))
    if quarantined:
        print(f"{counted} cannot be used, {_most_common(reasons)}")


def _excess(counted: str, fraction: float, reasons: Counter[str], file: Path) -> str:
    most_common = f"{_most_common(reasons)}; " if reasons else ""
    return (
        f"{counted} cannot be used, more than data.max_bad_fraction={fraction:g}; {most_common}all are in {file}: "
        "correct the data or raise the fraction"
    )


def _most_common(reasons: Counter[str]) -> str:
    ((reason, count),) = reasons.most_common(1)
    return f"most often ({count}): {reason}"
