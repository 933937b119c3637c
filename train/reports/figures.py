"""The figures of a run's report, as matplotlib figures that are readable without colour."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from train.reports.curve import STYLES, literal

Rows = Sequence[Mapping[str, Any]]  # of metrics.jsonl
BLUE, GREY = "#0072B2", "#999999"
HATCHES = ("", "//", "..", "xx", "\\\\", "++")


def blank(width: float = 6.0, height: float = 3.4) -> tuple[Figure, Any]:
    """(figure, axes)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def as_image(figure: Figure, alt: str) -> str:
    """An HTML image with the figure embedded."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def loss_by_rate(rows: Rows) -> Figure:
    """Loss over steps, one line per range of rates."""
    figure, axes = blank()
    names = sorted({name for row in rows for name in row if name.startswith("loss/rate_")})
    for name, (colour, marker, dashes) in zip(names, STYLES):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        label = f"rates {literal(name.removeprefix('loss/rate_'))}"
        every = max(1, len(points) // 12)
        axes.plot(*zip(*points), color=colour, linestyle=dashes, marker=marker, markevery=every, ms=5, label=label)
    axes.set(xlabel="step", ylabel="loss per labelled token")
    axes.legend(fontsize=9)
    return figure


def drawn_rates(rates: Sequence[float]) -> Figure:
    figure, axes = blank()
    axes.hist(rates, bins=[i / 20 for i in range(21)], color=BLUE, edgecolor="white")
    axes.set(xlabel="pruning rate", ylabel="micro-batches", xlim=(0, 1))
    return figure


def step_time(rows: Rows) -> Figure:
    """Mean seconds of a step by span; time outside all spans is the rest."""
    means = {name: _mean(rows, name) for row in rows for name in row if name.startswith("time/")}
    total = means.pop("time/step", sum(means.values()))
    parts = {name.removeprefix("time/").replace("_", " "): mean for name, mean in means.items() if mean}
    parts["rest"] = max(0.0, total - sum(parts.values()))
    figure, axes = blank(height=2.6)
    left = 0.0
    for (name, seconds), hatch, (colour, _, _) in zip(parts.items(), HATCHES, STYLES):
        label = f"{literal(name)}: {seconds:.3g} s ({seconds / max(total, 1e-9):.0%})"
        axes.barh(0, seconds, left=left, color=colour, edgecolor="white", hatch=hatch, label=label)
        left += seconds
    axes.set(xlabel="seconds of a step (mean)", yticks=[], ylim=(-0.5, 0.5))
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return figure


def tokens(before: int, after: int) -> Figure:
    figure, axes = blank(height=1.9)
    axes.barh(["after pruning", "before"], [after, before], color=[BLUE, GREY], edgecolor="white")
    for row, value in enumerate((after, before)):
        axes.text(value, row, f" {value:,}", va="center", fontsize=10)
    axes.set(xlabel="tokens of the language model", xlim=(0, 1.25 * max(before, 1)))
    return figure


def first_token(seconds: Mapping[float, float]) -> Figure:
    """Seconds to the first token by rate."""
    figure, axes = blank()
    rates = sorted(seconds)
    axes.plot(rates, [seconds[rate] for rate in rates], color=BLUE, marker="o", linewidth=2)
    axes.set(xlabel="pruning rate", ylabel="seconds to the first token", ylim=(0, None))
    return figure


def _mean(rows: Rows, name: str) -> float:
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else 0.0
