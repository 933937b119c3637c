"""Accuracy by pruning rate: what a run recorded, as a picture and as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Curve:
    name: str
    accuracy: dict[float, float]  # by rate


def from_run(run_dir: Path) -> list[Curve]:
    """A run's first and last evaluation; empty if it had none."""
    path, prefix = run_dir / "metrics.jsonl", "eval/accuracy_at_"
    if not path.is_file():
        raise ValueError(f"{run_dir} holds no metrics.jsonl: give the run_dir of a training run")
    by_step: dict[int, dict[float, float]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        accuracy = {float(key.removeprefix(prefix)): value for key, value in row.items() if key.startswith(prefix)}
        if accuracy:
            by_step[row["step"]] = accuracy
    return [Curve(f"step {step}", by_step[step]) for step in sorted({min(by_step), max(by_step)})] if by_step else []


def table(curves: Sequence[Curve]) -> str:
    """A Markdown table, one row a curve, accuracy in percent."""
    rates = sorted({rate for curve in curves for rate in curve.accuracy})
    lines = ["| | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" * (len(rates) + 1) + "|"]
    for curve in curves:
        cells = [f"{100 * curve.accuracy[rate]:.1f}" if rate in curve.accuracy else "" for rate in rates]
        lines.append(f"| {curve.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(curves: Sequence[Curve], out: Path, title: str) -> None:
    """Write the curves as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve in curves:
        rates = sorted(curve.accuracy)
        axes.plot(rates, [100 * curve.accuracy[rate] for rate in rates], marker="o", label=curve.name)
    axes.set(xlabel="pruning rate (fraction of video tokens removed)", ylabel="accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
