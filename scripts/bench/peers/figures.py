"""Figures from records: times of a step and its parts, equality of the batches, and the table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

WARMUP = 2  # steps that are not counted
SPANS = ("vision", "language_model", "backward", "optimizer")
GIVEN = {"grids": "grids", "video_tokens": "video tokens", "labels": "label tokens"}
COLUMNS = ("samples/s", "ours at 0 is", "step s", *SPANS, "other", "processor s/sample", "peak GiB", "first step s")
REFERENCE = "ours at 0"


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
        "processor_s": sum(step["processor"] for step in steps) / samples,  # a sample
        "peak_gib": record["peak_bytes"] / 2**30,
        "first_step_s": record["first_step_s"],
    }


def differences(mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each kind of difference between two lists of batches; empty if they are equal."""
    lines = []
    pairs = list(zip(mine, theirs))
    for key, name in GIVEN.items():
        unlike = [(a[key], b[key]) for a, b in pairs if a[key] != b[key]]
        if unlike:
            ours, peer = unlike[0]
            lines.append(f"{name} differ in {len(unlike)} of {len(pairs)} batches, first {peer} against {ours}")
    return lines


def incoherent(batches: Sequence[Mapping[str, Any]], merge: int = 2) -> list[str]:
    """Batches whose video tokens are not what their own grids give; for packed rows, which nobody orders alike."""
    expected = [sum(t * h * w for t, h, w in batch["grids"]) // merge**2 for batch in batches]
    wrong = [
        (batch["video_tokens"], tokens) for batch, tokens in zip(batches, expected) if batch["video_tokens"] != tokens
    ]
    return (
        [f"{len(wrong)} batches hold {wrong[0][0]} video tokens where their grids give {wrong[0][1]}"] if wrong else []
    )


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def ahead(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> tuple[float, float, float]:
    """How many times more samples a second ours does: median, least and most over the rounds both have done."""
    ratios = [a["samples_per_s"] / b["samples_per_s"] for a, b in zip(ours, theirs)]
    return statistics.median(ratios), min(ratios), max(ratios)


def table(rows: Mapping[str, Any]) -> str:
    """Markdown of one mode: rows[name] holds `rounds` or, where there are none, the `reason`."""
    lines = [
        "| | " + " | ".join(name.replace("_", " ") for name in COLUMNS) + " |",
        "| --- " * (len(COLUMNS) + 1) + "|",
    ]
    reference = rows.get(REFERENCE, {}).get("rounds")
    for name, row in rows.items():
        if not row.get("rounds"):
            lines.append(f"| {name} | {row['reason'].replace('|', '/')} |" + " |" * (len(COLUMNS) - 1))
        else:
            lines.append(f"| {name} | " + " | ".join(_cells(row["rounds"], reference)) + " |")
    return "\n".join(lines)


def _cells(rounds: Sequence[Mapping[str, float]], reference: Sequence[Mapping[str, float]] | None) -> list[str]:
    figures = medians(rounds)
    ratio = "" if reference in (None, rounds) else "{:.2f}x ({:.2f}..{:.2f})".format(*ahead(reference or [], rounds))
    seconds = [f"{figures[name]:.2f}" for name in ("step_s", *SPANS, "other", "processor_s", "peak_gib")]
    return [f"{figures['samples_per_s']:.2f}", ratio, *seconds, f"{figures['first_step_s']:.1f}"]


def behind(modes: Mapping[str, Mapping[str, Any]], ours: Sequence[str]) -> list[str]:
    """Where a peer does at least as many samples a second as ours at rate 0, with the spans in which it is faster."""
    lines = []
    for mode, rows in modes.items():
        reference = rows.get(REFERENCE, {}).get("rounds")
        for name, row in rows.items():
            if reference and name not in ours and row.get("rounds") and ahead(reference, row["rounds"])[0] <= 1:
                mine, theirs = medians(reference), medians(row["rounds"])
                lost = {span: mine[span] - theirs[span] for span in (*SPANS, "other")}
                where = ", ".join(f"{span} +{seconds:.2f} s" for span, seconds in lost.items() if seconds > 0)
                spent = f"processor {mine['processor_s']:.2f} s/sample against {theirs['processor_s']:.2f}"
                lines.append(f"{mode}: {name} is ahead ({where}; {spent})")
    return lines
