"""How much of the data may be unusable before a run stops and says why: `data.max_bad_fraction`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data.types import Quarantined
from train.metrics.jsonl import append_new_lines
from train.reports.summary import kind_of

SOON = 100  # samples: of fewer that were decoded, as many must be bad as would be too many of these
FEW = 3  # audited rows that no small file is refused for


@dataclass
class BadSampleLimit:
    """Judges what only decoding shows. Samples are counted over all ranks, reasons on this one."""

    fraction: float
    file: Path  # quarantine.jsonl
    seen: float = 0
    bad: float = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def note(self, lost: Sequence[Quarantined]) -> None:
        """What this rank left out of a step."""
        self.reasons.update(kind_of(each.reason) for each in lost)

    def look(self, values: Mapping[str, float]) -> None:
        """Raises ValueError where, with a report's values, too many of the samples so far could not be used."""
        self.bad += values["quarantined/decoding"]
        self.seen += values["samples"] + values["quarantined/decoding"]
        if self.bad > self.fraction * max(self.seen, SOON):
            counted = f"{self.bad:.0f} of the {self.seen:.0f} samples so far"
            raise ValueError(_excess(counted, self.fraction, self.reasons, self.file))


def check_audited(name: str, rows: int, lost: Sequence[Quarantined], fraction: float, file: Path) -> None:
    """Print how many of the rows that `name` gives cannot be used. Raise ValueError, and leave the reasons in `file`,
    if they are too many.

    A few may always be bad, so that one of nine rows stops nobody, unless the fraction is 0.
    """
    counted = f"{name}: {len(lost)} of {rows} rows"
    reasons = Counter(kind_of(each.reason) for each in lost)
    if len(lost) > max(fraction * rows, FEW if fraction else 0):
        file.parent.mkdir(parents=True, exist_ok=True)
        append_new_lines(file, [{"step": 0, **asdict(each)} for each in lost])
        raise ValueError(_excess(counted, fraction, reasons, file))
    if lost:
        print(f"{counted} cannot be used, {_often(reasons)}")


def _excess(counted: str, fraction: float, reasons: Counter[str], file: Path) -> str:
    often = f"{_often(reasons)}; " if reasons else ""
    return (
        f"{counted} cannot be used, more than data.max_bad_fraction={fraction:g}; {often}all are in {file}: "
        "correct the data or raise the fraction"
    )


def _often(reasons: Counter[str]) -> str:
    ((reason, count),) = reasons.most_common(1)
    return f"most often ({count}): {reason}"
