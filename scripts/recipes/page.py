"""The study as part of a Markdown page: accuracy by rate, differences from the reference, accuracy by kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from data.synthetic.items import PRUNED
from data.synthetic.stills import STILLS
from scripts.recipes.results import Difference, Result, difference, on_stills, read
from scripts.recipes.runs import Seed
from scripts.recipes.table import BASE, COMPARED, CONTROL, PAPER, REFERENCE, Recipe
from train.metrics.machine import machine
from train.reports.curve import Curve, plot
from train.reports.equal_tokens import equal_tokens_text
from train.reports.markdown import markdown_table

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
KIND_RATE = 0.85  # pruning rate of the table by kind of question
COUNTS = (
    "A difference counts if it is above its standard deviation over seeds and its paired test gives p < .05; "
    "otherwise it is a tie."
)
Results = Mapping[str, Sequence[Result]]  # by recipe, one per seed


def write(page: Path, seeds: Sequence[Seed], recipes: Sequence[Recipe], command: str) -> None:
    """Write the study between the markers of `page`, and a figure of the same name next to it.

    A page that does not exist is created; text outside the markers stays. ValueError if a page has no markers.
    """
    reduced = {BASE: None} | {recipe.name: recipe.reduced for recipe in recipes}
    by_recipe = {name: [read(seed, name, kind) for seed in seeds] for name, kind in reduced.items()}
    figure = page.with_suffix(".png")
    parts = _parts(by_recipe, {recipe.name: recipe.about for recipe in recipes}, command, figure.name)
    text = insert(page, "\n\n".join(parts))  # before any file changes, because it names the commit
    page.parent.mkdir(parents=True, exist_ok=True)
    plot(curves(by_recipe), figure, "Accuracy on the graded suite, by pruning rate")
    page.write_text(text)


def insert(page: Path, study: str) -> str:
    """The text of `page` with `study` between its markers."""
    old = page.read_text() if page.exists() else f"# Recipes\n\n{BEGIN}\n{END}\n"
    head, begin, rest = old.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"page={page} has no lines {BEGIN} and {END}: add them, or give another file")
    return f"{head}{BEGIN}\n{study}\n{END}{tail}"


def _parts(by_recipe: Results, about: Mapping[str, str], command: str, figure: str) -> Iterator[str]:
    """The paragraphs and tables of the study."""
    about_machine, base = machine(), by_recipe[BASE][0]
    seeds = ", ".join(str(result.seed) for result in by_recipe[BASE])
    yield f"    {command}"
    yield (
        f"A tiny model on the graded suite (`make_suite.py`): {len(base.kinds)} questions per seed, seeds {seeds}, "
        f"commit {about_machine['commit']}, {about_machine['device']}. Every recipe starts from the same base "
        f"and takes as many operations as `{REFERENCE}`; `{CONTROL}` takes as many steps. "
        "Accuracy in %, mean over seeds; ± is the standard deviation of the mean over seeds."
    )
    yield f"Area of the score for tokens whose pixels changed, by seed: {areas(by_recipe)}."
    yield by_rate(by_recipe, about)
    yield f"![Accuracy by pruning rate]({figure})"
    yield f"Differences of the mean over rates, in points, on the same questions. {COUNTS}"
    yield paired(by_recipe)
    rate = KIND_RATE if KIND_RATE in base.rates else max(base.rates)
    yield f"Accuracy by kind of question at rate {rate:g}:"
    yield by_kind(by_recipe, rate)
    yield f"Accuracy on images and text, at rate 0, and minus `{CONTROL}`:"
    yield stills(by_recipe)
    for name, results in by_recipe.items():
        for result in results if name in COMPARED else ():
            sentence, table = equal_tokens_text(result.baselines)
            yield f"`{name}`, seed {result.seed}. {sentence}\n\n{table}"


def areas(by_recipe: Results) -> str:
    """The area of the base and of the reference in every seed."""
    shown = {name: by_recipe[name] for name in (BASE, REFERENCE) if name in by_recipe}
    return "; ".join(
        f"{name} {', '.join(f'{result.area:.3f}' for result in results if result.area is not None)}"
        for name, results in shown.items()
    )


def stills(by_recipe: Results) -> str:
    """A table of accuracy on images and text, which do not get pruned."""
    rows = []
    for name, results in by_recipe.items():
        change = [""] * 5
        if CONTROL in by_recipe and name not in (BASE, CONTROL):
            change = _cells(difference(on_stills(results), on_stills(by_recipe[CONTROL])))
        rows.append([name, *(_percent(on_stills(results, kind)) for kind in STILLS), *change])
    return markdown_table(["recipe", *STILLS, *_header(CONTROL)], rows)


def by_rate(by_recipe: Results, about: Mapping[str, str]) -> str:
    """A table of accuracy, one row per recipe and one column per rate."""
    rates = by_recipe[BASE][0].rates
    rows = []
    for name, results in by_recipe.items():
        cells = [_percent(results, rates=[rate]) for rate in rates]
        means = [100 * result.accuracy for result in results]
        spread = f"{stdev(means):.1f}" if len(means) > 1 else ""
        spent = [results[0].steps, f"{fmean(result.operations for result in results) / 1e12:.2f}"]
        rows.append([name, about.get(name, "before uptraining"), *cells, f"{fmean(means):.1f}", spread, *spent])
    return markdown_table(
        ["recipe", "", *(f"{rate:g}" for rate in rates), "mean", "±", "steps", "10^12 operations"], rows
    )


def by_kind(by_recipe: Results, rate: float) -> str:
    """A table of the main recipes' accuracy on every kind of question, and what pruning does to its answer's tokens."""
    names = main_recipes(by_recipe)
    kinds = set(by_recipe[BASE][0].kinds.values())
    rows = [
        [kind, tokens, *(_percent(by_recipe[name], rates=[rate], kinds=[kind]) for name in names)]
        for kind, tokens in PRUNED.items()
        if kind in kinds
    ]
    return markdown_table(["kind", "tokens of the answer", *names], rows)


def paired(by_recipe: Results) -> str:
    """A table of every recipe compared with the reference."""
    rows = [
        [name, *_cells(difference(results, by_recipe[REFERENCE]))]
        for name, results in by_recipe.items()
        if name not in (REFERENCE, BASE) and REFERENCE in by_recipe
    ]
    return markdown_table(["recipe", *_header(REFERENCE)], rows)


def _header(reference: str) -> list[str]:
    """The columns of `_cells`."""
    return [f"minus `{reference}`", "95 % interval", "p", "± over seeds", "counts"]


def _cells(one: Difference) -> list[str]:
    spread = "" if one.spread is None else f"{100 * one.spread:.1f}"
    counts = {None: "one seed", True: "yes", False: "tie"}[one.counts]
    interval = f"{100 * one.paired.low:+.1f} to {100 * one.paired.high:+.1f}"
    return [f"{100 * one.mean:+.1f}", interval, f"{one.paired.p:.2g}", spread, counts]


def main_recipes(by_recipe: Results) -> list[str]:
    """The base, control, fixed, the reference, the paper's recipe, and the one with the highest mean over rates."""
    uptrained = [name for name in by_recipe if name not in (BASE, CONTROL)]
    best = max(uptrained, key=lambda name: _mean(by_recipe[name]))
    return [name for name in dict.fromkeys((BASE, CONTROL, "fixed", REFERENCE, PAPER, best)) if name in by_recipe]


def curves(by_recipe: Results) -> list[Curve]:
    """Accuracy by rate of the main recipes."""
    return [
        Curve(name, {rate: _mean(by_recipe[name], rates=[rate]) for rate in by_recipe[name][0].rates})
        for name in main_recipes(by_recipe)
    ]


def _mean(results: Sequence[Result], **only: Any) -> float:
    return fmean(result.only(**only).accuracy for result in results)


def _percent(results: Sequence[Result], **only: Any) -> str:
    return f"{100 * _mean(results, **only):.1f}"
