"""Reports: a run as one HTML page, accuracy by pruning rate as a picture, a sweep as a table.

python scripts/report.py run=DIR [results=[base.json,uptrained.json]] [prefill=prefill.json]    writes DIR/report.html
python scripts/report.py results=[base.json,uptrained.json] out=curve.png      from JSON files of scripts/evaluate.py
python scripts/report.py run=DIR out=curve.png                                 first and last evaluation of a run
python scripts/report.py sweep=DIR [out=table.md]                              one row per job of `train/run.py -m`
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from train import cli
from train.reports import page
from train.reports.curve import from_results, from_run, plot
from train.reports.sweep_table import rows, table


@dataclass
class Options:
    out: str | None = None  # output file: .html, .png, or .md for a sweep; default: report.html in the run's folder
    results: list[str] = field(default_factory=list)  # JSON files of scripts/evaluate.py, one curve each
    run: str | None = None  # the run_dir of a training run
    sweep: str | None = None  # the folder of a sweep
    prefill: str | None = None  # JSON file of `benchmark.py prefill`, for the page: time to first token by rate
    title: str = "Accuracy by pruning rate"  # of the picture


def main(options: Options) -> None:
    if options.sweep is not None:
        cli.refuse_unused(options, ("run", "results", "prefill", "title"), "with sweep=DIR: remove it")
        text = table(rows(Path(options.sweep)))
        print(text)
        if options.out is not None:
            Path(options.out).write_text(text + "\n")
        return
    curves = [from_results(Path(path)) for path in options.results]
    if options.run is not None and (options.out is None or options.out.endswith(".html")):
        cli.refuse_unused(options, ("title",), "on a page: give out=FILE.png for a picture")
        out = Path(options.out or Path(options.run, "report.html"))
        page.write(Path(options.run), out, curves, Path(options.prefill) if options.prefill else None)
        print(f"page: {out}")
        return
    if options.out is None or not options.out.endswith(".png"):
        raise ValueError(f"out={options.out}: give a .png, or run=DIR and an .html")
    cli.refuse_unused(options, ("prefill",), "on a picture: give run=DIR and an .html")
    if options.run is not None:
        curves += from_run(Path(options.run))
    if not curves:
        raise ValueError("nothing to plot: give results=[FILE.json,...] or run=DIR")
    plot(curves, Path(options.out), options.title)
    print(f"curve: {options.out}")


if __name__ == "__main__":
    cli.run(main, Options)
