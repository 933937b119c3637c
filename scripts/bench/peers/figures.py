"""Figures of a training process: times of a step and its parts, differences between batches, and the table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from train.reports.markdown import markdown_table

WARMUP = 2  # steps that are not counted
SPANS = ("vision", "language_model", "backward", "optimizer")
COMPARED = {"grids": "grids", "video_tokens": "video tokens", "labels": "label tokens"}  # of a batch
COLUMNS = ("samples/s", "ours at 0 is", "step s", *SPANS, "other", "processor s/sample", "peak GiB", "first step s")
REFERENCE = "ours at 0"
WITH_PRUNING = ("step s at .75", "saved", "of our saving")
PRUNED, UNIFORM = " at .75", " uniform"  # ends of the names of frameworks that prune
Round = Mapping[str, float]


def summary(record: Mapping[str, Any]) -> dict[str, float]:
    """Means over the steps after the warm-up, in seconds and GiB; `other` is loss, clipping and waiting for data."""
    steps = record["steps"][WARMUP:]
    samples = sum(len(batch["grids"]) for batch in record["batches"] if batch["step"] >= WARMUP)
    seconds = sum(step["seconds"] for step in steps)
    spans = {name: sum(step.get(name, 0.0) for step in steps) / len(steps) for name in SPANS}
    return {
        "samples_per_s": samples / seconds,
        "step_s": seconds / len(steps),
        **spans,
        "other": seconds / len(steps) - sum(spans.values()),
        "processor_s_per_sample": sum(step["processor"] for step in steps) / samples,
        "peak_gib": record["peak_bytes"] / 2**30,
        "first_step_s": record["first_step_s"],
    }


def differences(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each kind of difference between two lists of batches; empty if they are equal."""
    pairs = list(zip(ours, theirs))
    unequal = {name: [(b[key], a[key]) for a, b in pairs if a[key] != b[key]] for key, name in COMPARED.items()}
    return [
        f"{name} differ in {len(each)} of {len(pairs)} batches, first {each[0][0]} against {each[0][1]}"
        for name, each in unequal.items()
        if each
    ]


def loss_difference(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> float:
    """The largest difference between the losses of two lists of batches."""
    return max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs))


def table(rows: Mapping[str, Any]) -> str:
    """The Markdown table of one mode, one line for each framework. A row holds its `rounds` or the `reason` why there
    are none; a row with pruning fills the last columns of its framework."""
    reference = rows.get(REFERENCE, {}).get("rounds")
    ours = _saving(rows, REFERENCE)
    cells = [
        [name, *_cells(row, reference), *_with_pruning(rows, name, ours)]
        for name, row in rows.items()
        if not name.endswith(PRUNED)
    ]
    return markdown_table(["", *(name.replace("_", " ") for name in COLUMNS), *WITH_PRUNING], cells)


def _cells(row: Mapping[str, Any], reference: Sequence[Round] | None) -> list[str]:
    if not (rounds := row["rounds"]):
        return [row["reason"], *[""] * (len(COLUMNS) - 1)]
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    columns = ("step_s", *SPANS, "other", "processor_s_per_sample", "peak_gib")
    seconds = [f"{medians[name]:.2f}" for name in columns]
    return [f"{medians['samples_per_s']:.2f}", _ratio(rounds, reference), *seconds, f"{medians['first_step_s']:.1f}"]


def _with_pruning(rows: Mapping[str, Any], name: str, ours: float | None) -> list[str]:
    """The cells of WITH_PRUNING; why there are none if the framework runs without pruning only."""
    pruned, saving = rows.get(_pruned(name), {"rounds": []}), _saving(rows, name)
    if saving is None:
        return [pruned.get("reason", "") if rows[name]["rounds"] else "", "", ""]
    share = f"{saving / ours:.2f}" if ours and name != REFERENCE else ""
    return [f"{_step_s(pruned):.2f}", f"{saving:.0%}", share]


def _saving(rows: Mapping[str, Any], name: str) -> float | None:
    """The share of a step's time that pruning saves; None unless the framework ran with and without it."""
    pairs = [rows[key] for key in (name, _pruned(name)) if rows.get(key, {}).get("rounds")]
    return 1 - _step_s(pairs[1]) / _step_s(pairs[0]) if len(pairs) == 2 else None


def _pruned(name: str) -> str:
    return name.removesuffix(" at 0") + PRUNED


def _step_s(row: Mapping[str, Any]) -> float:
    return statistics.median(one["step_s"] for one in row["rounds"])


def _ratio(rounds: Sequence[Round], reference: Sequence[Round] | None) -> str:
    """How many times more samples a second the reference does: median, least and most over the rounds."""
    if reference is None or reference is rounds:
        return ""
    ratios = [a["samples_per_s"] / b["samples_per_s"] for a, b in zip(reference, rounds)]
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}..{max(ratios):.2f})" if ratios else ""
