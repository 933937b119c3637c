"""Counts of quarantined samples by reason, and the limit on them in a data set: `data.max_bad_fraction`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data.types import Quarantined
from train.jsonl import append_new_lines

ALWAYS_ALLOWED = 3  # bad rows of a data set that never end a run, so that small files are not refused for one


def check_audited(name: str, rows: int, quarantined: Sequence[Quarantined], fraction: float, file: Path) -> None:
    """Print how many of the `rows` of the data set `name` are quarantined.

    Raise ValueError, after writing the reasons to `file`, if they are more than the fraction. A few bad rows are always
    allowed unless the fraction is 0.
    """
    counted = f"{name}: {len(quarantined)} of {rows} rows"
    reasons = Counter(normalized_reason(sample.reason) for sample in quarantined)
    if len(quarantined) > max(fraction * rows, ALWAYS_ALLOWED if fraction else 0):
        file.parent.mkdir(parents=True, exist_ok=True)
        append_new_lines(file, [{"step": 0, **asdict(sample)} for sample in quarantined])
        raise ValueError(too_many_message(counted, fraction, reasons, file))
    if quarantined:
        print(f"{counted} cannot be used, {_most_common(reasons)}")


def too_many_message(counted: str, fraction: float, reasons: Counter[str], file: Path) -> str:
    """The error line for too many quarantined samples. `counted` says how many, `reasons` why."""
    most_common = f"{_most_common(reasons)}; " if reasons else ""
    return (
        f"{counted} cannot be used, more than data.max_bad_fraction={fraction:g}; {most_common}all are in {file}: "
        "correct the data or raise the fraction"
    )


def _most_common(reasons: Counter[str]) -> str:
    ((reason, count),) = reasons.most_common(1)
    return f"most often ({count}): {reason}"


def normalized_reason(reason: str) -> str:
    """A reason without the file or row at its beginning, and with N for numbers."""
    return re.sub(r"\d+(\.\d+)?", "N", reason.partition(": ")[2] or reason)
