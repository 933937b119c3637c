"""A report of a run as one self-contained HTML file: curves, rates, loss, time, quarantined samples and origin."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from matplotlib.figure import Figure

from train import cli
from train.checkpoint import manifest
from train.checkpoint.checkpoint import complete
from train.jsonl import read_lines
from train.plugins import build_rates
from train.removed import replacement
from train.reports import figures
from train.reports.curve import Curve, figure, from_run, table_rows
from train.reports.equal_tokens import equal_tokens_rows, equal_tokens_sentence
from train.reports.figures import Rows, as_image
from train.reports.summary import Summary, summarize
from train.run_folder import read_object
from train.views import StepRates

PAGE = Template("""\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 2rem auto; padding: 0 1rem; color: #111; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
main { columns: 2 500px; column-gap: 1.5rem; }
section { border: 1px solid #ccc; border-radius: 8px; padding: 1rem; margin-bottom: 1.5rem; break-inside: avoid; }
img { max-width: 100%; } pre { overflow-x: auto; background: #f4f4f4; padding: .75rem; font-size: .85rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; } td:nth-child(2):last-child { overflow-wrap: anywhere; }
</style></head>
<body><h1>$title</h1><p>$lead</p><main>
$sections
</main></body></html>
""")
Section = tuple[str, str]  # heading, HTML


def write(run_dir: Path, out: Path, results: Sequence[Curve], prefill: Path | None = None) -> None:
    """Write the report of a run. `results`, if any, replace the run's own evaluations. ValueError without a run."""
    if not (run_dir / "config.yaml").is_file():
        raise ValueError(f"run={run_dir} holds no config.yaml: give the run_dir of a training run")
    done = summarize(run_dir)
    rows = [row for row in read_lines(run_dir / "metrics.jsonl") if "samples" in row]
    curves = results or from_run(run_dir)
    contents = [
        *_curves(curves),
        *_first_token(prefill),
        *_steps(rows, "loss/rate_", "Loss by pruning rate", figures.loss_by_rate, "loss over steps by range of rates"),
        *_rates(run_dir),
        ("Tokens saved", _tokens(done)),
        *_steps(rows, "time/", "Where a step's time goes", figures.step_time, "seconds of a step by part"),
        ("Quarantined samples", _quarantine(done)),
        *_origin(run_dir, done),
        *_not_measured(curves, prefill, done),
    ]
    sections = "\n".join(f"<section><h2>{heading}</h2>{body}</section>" for heading, body in contents)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(PAGE.substitute(title=html.escape(f"Run {run_dir.name}"), lead=_lead(done), sections=sections))


def _lead(done: Summary) -> str:
    memory = "" if done.peak_memory_gib is None else f" Peak memory {done.peak_memory_gib:.2f} GiB a rank."
    return (
        f"{done.steps} steps on {done.samples:,} samples in {done.hours:.2f} h ({done.samples_per_s:.3g} a second); "
        f"mean pruning rate {done.rate:.3f}.{memory}"
    )


def _steps(rows: Rows, prefix: str, heading: str, draw: Callable[[Rows], Figure], alt: str) -> Iterator[Section]:
    """A picture of the values whose names begin with `prefix`, if there are any."""
    if any(name.startswith(prefix) for row in rows for name in row):
        yield heading, as_image(draw(rows), alt)


def _not_measured(curves: Sequence[Curve], prefill: Path | None, done: Summary) -> Iterator[Section]:
    """The commands that measure what the page does not show."""
    commands = []
    if not curves:
        commands += [cli.command("evaluate", f"model={done.checkpoint or 'DIR'}", "data=FILE", "out=curve.json")]
    if prefill is None:
        commands += ["python scripts/benchmark.py prefill out=prefill.json"]
    if commands:
        hint = (
            "<code>results=[curve.json]</code> and <code>prefill=prefill.json</code> add what these commands measure:"
        )
        yield "Not measured", f"{hint}<pre>{html.escape(chr(10).join(commands))}</pre>"


def _curves(curves: Sequence[Curve]) -> Iterator[Section]:
    if not curves:
        return
    picture = as_image(figure(curves, ""), "accuracy by pruning rate")
    best = curves[-1].recommended()
    advice = "" if best is None else f"<p>Serve {html.escape(curves[-1].name)} at rate <b>{best:g}</b>.</p>"
    yield "Accuracy by pruning rate", picture + _html_table(table_rows(curves)) + advice
    for curve in curves:
        if curve.baselines:
            text = f"<p>{html.escape(equal_tokens_sentence(curve.baselines))}</p>"
            heading = f"Pruning against fewer or smaller frames: {html.escape(curve.name)}"
            yield heading, text + _html_table(equal_tokens_rows(curve.baselines))


def _html_table(rows: Sequence[Sequence[object]]) -> str:
    cells = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def _first_token(prefill: Path | None) -> Iterator[Section]:
    """From the JSON of `benchmark.py prefill`: vision tower plus language model, pruned after the tower."""
    heading = "Time to first token by pruning rate"
    if prefill is None:
        return
    try:
        measured = json.loads(prefill.read_text())
        of_part = {name: float(value["seconds"]) for name, value in measured["result"].items()}
        rates = [float(rate) for rate in measured["options"]["rates"]]
        seconds = {rate: of_part["tower"] + of_part[f"language {rate:g}"] for rate in rates}
        shape = f"{measured['options']['shape']} on {measured['machine']['device']}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"prefill={prefill}: not what benchmark.py prefill writes ({error!r}): give that file"
        ) from None
    picture = as_image(figures.first_token(seconds), "seconds to the first token by rate")
    rows = [("rate", "seconds"), *((f"{rate:g}", f"{value:.3f}") for rate, value in seconds.items())]
    yield heading, f"{picture}{_html_table(rows)}<p>Shape {html.escape(shape)}; random weights.</p>"


def _rates(run_dir: Path) -> Iterator[Section]:
    """The rates of all micro-batches: as recorded, or drawn again if they depend on seed and step alone."""
    try:
        yield from _drawn_rates(run_dir)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"run={run_dir}: its manifest or batches.jsonl is not what a run writes ({error!r})") from None


def _drawn_rates(run_dir: Path) -> Iterator[Section]:
    if rates := [rate for row in read_lines(run_dir / "batches.jsonl") for view in row["rates"] for rate in _all(view)]:
        yield "Drawn rates", as_image(figures.drawn_rates(rates), "histogram of drawn pruning rates")
    elif checkpoints := complete(run_dir / "checkpoints"):
        saved = manifest.read(checkpoints[-1])
        plan, node = saved.shape["plan"], dict(saved.shape["rates"])
        if replacement(str(node)):
            return  # a distribution of an earlier version cannot be drawn again
        views = (saved.shape.get("views") or {}) | {"per_video": node.pop("per_video", False)}
        levels = node.pop("levels")
        draw = StepRates(build_rates(node), plan["places"], saved.shape["seed"], levels, **views)
        if draw.replayable:
            rates = [rate for step in range(saved.step) for view in draw(step) for rate in view]
            yield "Drawn rates", as_image(figures.drawn_rates(rates), "histogram of drawn pruning rates")


def _all(view: Any) -> list[float]:
    """The rates of one view: a single one, or one per video."""
    return view if isinstance(view, list) else [view]


def _tokens(done: Summary) -> str:
    picture = as_image(figures.tokens(done.tokens_before, done.tokens_after), "tokens before and after pruning")
    saved = 1 - done.tokens_after / max(1, done.tokens_before)
    return f"{picture}<p>{saved:.0%} of all tokens, text included, were pruned.</p>"


def _quarantine(done: Summary) -> str:
    if not done.quarantined:
        return "None: every sample was used."
    return _html_table([("reason", "samples"), *done.quarantined.items()])


def _origin(run_dir: Path, done: Summary) -> Iterator[Section]:
    """Hardware, commit, commands and configuration."""
    path = run_dir / "machine.json"
    machine: Mapping[str, Any] = read_object(path) if path.is_file() else {}
    yield "Hardware and commit", _html_table(list(machine.items())) if machine else "Not recorded by this run."
    commands = [str(machine["command"])] if "command" in machine else []
    if done.checkpoint:
        commands.append(cli.command("export", f"run={run_dir}", f"out={run_dir}-checkpoint"))
    yield "Commands", f"<pre>{html.escape(chr(10).join(commands))}</pre>"
    shown = (run_dir / "config.yaml").read_text()
    yield "Configuration", f"<details><summary>config.yaml</summary><pre>{html.escape(shown)}</pre></details>"
