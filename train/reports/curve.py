"""Accuracy by pruning rate, from a run or from scripts/evaluate.py, as a figure and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from data.types import printable
from train.jsonl import read_lines
from train.reports.equal_tokens import NAMES, EqualTokens
from train.reports.markdown import markdown_table

POINT = 0.01  # of accuracy: the loss that a recommended rate may have
ACCURACY = "eval/accuracy_at_"  # metrics.jsonl's name of it, before the rate
STYLES = (  # Okabe and Ito's colours, and a grey
    *(("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-.")),
    *(("#CC79A7", "D", ":"), ("#56B4E9", "v", "-"), ("#000000", "X", "--")),
    *(("#E69F00", "P", "-."), ("#999999", "<", ":")),
)


@dataclass(frozen=True)
class Curve:
    name: str
    accuracy: dict[float, float]  # by rate
    interval: Mapping[float, tuple[float, float]] = field(default_factory=dict)  # by rate, where it is known
    data: str = "held-out data"  # that it was measured on
    baselines: tuple[EqualTokens, ...] = ()  # the same checkpoint with fewer or smaller frames

    def recommended(self) -> float | None:
        """The highest rate within a point of rate 0 and within its confidence interval; None without rate 0."""
        if 0.0 not in self.accuracy:
            return None
        least = self.accuracy[0.0] - POINT
        if 0.0 in self.interval:
            least = max(least, self.interval[0.0][0])
        return max(rate for rate, accuracy in self.accuracy.items() if accuracy >= least - 1e-12)


def evaluations(run_dir: Path) -> dict[int, Curve]:
    """A run's evaluations by step, oldest first."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{run_dir} holds no metrics.jsonl: give the run_dir of a training run")
    by_step: dict[int, Curve] = {}
    for row in read_lines(path):
        if not isinstance(step := row.get("step"), int):
            raise ValueError(f"{path}: a line has step {step!r:.60}; correct or remove it")
        by_step[step] = curve_of(f"step {step}", row)
    return {step: curve for step, curve in sorted(by_step.items()) if curve.accuracy}


def curve_of(name: str, values: Mapping[str, Any]) -> Curve:
    """The curve in one line of metrics.jsonl; empty for a training step."""
    named = {key.removeprefix(ACCURACY): value for key, value in values.items() if key.startswith(ACCURACY)}
    return Curve(name, {float(rate): value for rate, value in named.items()})


def from_run(run_dir: Path) -> list[Curve]:
    """A run's first and last evaluation; empty if there are none."""
    by_step = evaluations(run_dir)
    return [by_step[step] for step in sorted({min(by_step), max(by_step)})] if by_step else []


def from_results(path: Path) -> Curve:
    """The curve in a JSON file of scripts/evaluate.py. Raise ValueError for any other file."""
    try:
        value = json.loads(path.read_text())
        scores = {float(score["rate"]): score for score in value["scores"]}
        accuracy = {rate: float(score["accuracy"]) for rate, score in scores.items()}
        interval = {rate: (score["low"], score["high"]) for rate, score in scores.items() if "low" in score}
        baselines = tuple(EqualTokens(**one) for one in value.get("baselines", ()))
        return Curve(printable(str(value["name"])), accuracy, interval, Path(value["data"]).stem, baselines)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not what scripts/evaluate.py out=... writes ({error!r}): give that file") from None


def table(curves: Sequence[Curve]) -> str:
    """A Markdown table with one row per curve; accuracy is in percent."""
    header, *rows = table_rows(curves)
    return markdown_table(header, rows)


def table_rows(curves: Sequence[Curve]) -> list[list[str]]:
    """The header of rates and one row per curve, with accuracy in percent."""
    rates = sorted({rate for curve in curves for rate in curve.accuracy})
    rows = [
        [curve.name, *(f"{100 * curve.accuracy[rate]:.1f}" if rate in curve.accuracy else "" for rate in rates)]
        for curve in curves
    ]
    return [["", *(f"{rate:g}" for rate in rates)], *rows]


def figure(curves: Sequence[Curve], title: str) -> Any:
    """A matplotlib figure of the curves, which differ in marker and dashes as well as in colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = [*curves, *chain.from_iterable(map(baseline_curves, curves))]
    many = len(curves) > 4
    drawn = Figure(figsize=(8, 5.2) if many else (7, 4.2), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    for i, curve in enumerate(curves):
        colour, marker, dashes = STYLES[i % len(STYLES)]
        rates = sorted(curve.accuracy)
        percent = [100 * curve.accuracy[rate] for rate in rates]
        axes.plot(rates, percent, color=colour, marker=marker, linestyle=dashes, linewidth=2, label=literal(curve.name))
        bars = [rate for rate in rates if rate in curve.interval]
        ends = [[100 * abs(curve.interval[rate][end] - curve.accuracy[rate]) for rate in bars] for end in (0, 1)]
        if bars:
            at = [100 * curve.accuracy[rate] for rate in bars]
            axes.errorbar(bars, at, yerr=ends, fmt="none", ecolor=colour, capsize=3)
    axes.set(xlabel="fraction of video tokens removed (pruning rate)", ylabel="accuracy (%)", title=literal(title))
    axes.grid(alpha=0.3)
    if many:
        drawn.legend(loc="outside lower center", ncols=2, fontsize=9)
    else:
        axes.legend()
    return drawn


def baseline_curves(curve: Curve) -> list[Curve]:
    """The accuracy of a checkpoint on fewer or smaller frames, by the fraction of video tokens that it saves."""
    curves = []
    for kind, name in NAMES.items():
        complete = [one for one in curve.baselines if one.baseline == kind and one.answers == one.questions]
        if complete:
            accuracy = {1 - one.kept: one.accuracy for one in complete}
            interval = {1 - one.kept: (one.low, one.high) for one in complete}
            curves.append(Curve(f"{curve.name}: {name}, not pruned", accuracy, interval))
    return curves


def literal(text: str) -> str:
    """The text, escaped such that matplotlib does not read it as mathematics or hide it from the legend."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def plot(curves: Sequence[Curve], out: Path, title: str) -> None:
    """Write the curves as a PNG."""
    out.parent.mkdir(parents=True, exist_ok=True)
    figure(curves, title).savefig(out, dpi=150)
