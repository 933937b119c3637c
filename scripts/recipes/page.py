"""The study as part of a Markdown page: tables by rate and kind of question, paired differences, and conclusions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from data.synthetic.items import LOST, PRUNED
from scripts.recipes.results import Result, Versus, read, versus
from scripts.recipes.runs import Seed
from scripts.recipes.table import BASE, CONTROL, PAPER, PLACES, REFERENCE, STOCK, Recipe
from train.metrics.machine import machine
from train.reports.curve import Curve, plot

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
KIND_RATE = 0.85  # pruning rate of the table by kind of question
EXCEEDS = "A difference counts if it is above its standard deviation over seeds and its paired test gives p < .05."
Results = Mapping[str, Sequence[Result]]  # by recipe, one per seed
SERVED = [kind for kind in PRUNED if kind not in LOST]


def write(page: Path, seeds: Sequence[Seed], recipes: Sequence[Recipe], command: str, blocks: int) -> None:
    """Write the study between the markers of `page`, and a figure of the same name next to it.

    A page that does not exist is created; text outside the markers stays. ValueError if a page has no markers.
    """
    by_recipe = {name: [read(seed, name) for seed in seeds] for name in (BASE, *(recipe.name for recipe in recipes))}
    figure = page.with_suffix(".png")
    lines = _lines(by_recipe, recipes, command, figure.name, blocks)
    text = insert(page, "\n".join(lines))  # names the commit, so before any file changes
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


def _lines(by_recipe: Results, recipes: Sequence[Recipe], command: str, figure: str, blocks: int) -> Iterator[str]:
    from_machine, base = machine(), by_recipe[BASE][0]
    seeds = f"seed{'s' * (len(by_recipe[BASE]) > 1)} " + ", ".join(str(result.seed) for result in by_recipe[BASE])
    yield f"    {command}\n"
    yield (
        f"A tiny model with a vision tower of {blocks} block{'s' * (blocks > 1)} on the graded suite "
        f"(`make_suite.py`), {len(base.kinds)} questions per seed, {seeds}, at commit {from_machine['commit']} on "
        f"{from_machine['device']}. Every recipe starts from the same base and takes as many operations as "
        f"`{REFERENCE}`; `{CONTROL}` takes as many steps. Accuracy in %, mean over seeds; ± is the standard deviation "
        "of the mean over seeds.\n"
    )
    yield from by_rate(by_recipe, {recipe.name: recipe.about for recipe in recipes})
    yield f"\n![Accuracy by pruning rate]({figure})\n"
    yield from (f"- {line}" for line in words(by_recipe))
    yield f"\nDifferences of the mean over rates, in points, on the same questions. {EXCEEDS}\n"
    yield from paired(by_recipe)
    rate = KIND_RATE if KIND_RATE in base.rates else max(base.rates)
    yield f"\nAccuracy by kind of question at rate {rate:g}:\n"
    yield from by_kind(by_recipe, rate)


def by_rate(by_recipe: Results, about: Mapping[str, str]) -> Iterator[str]:
    rates = by_recipe[BASE][0].rates
    heads = ["", *(f"{rate:g}" for rate in rates), "mean", "±", "steps", "10^12 operations"]
    yield from _head("recipe", heads)
    for name, results in by_recipe.items():
        cells = [_percent(results, rates=[rate]) for rate in rates]
        means = [100 * result.accuracy for result in results]
        spread = f"{stdev(means):.1f}" if len(means) > 1 else ""
        spent = [f"{results[0].steps}", f"{fmean(result.operations for result in results) / 1e12:.2f}"]
        yield _row(name, [about.get(name, "before uptraining"), *cells, f"{fmean(means):.1f}", spread, *spent])


def by_kind(by_recipe: Results, rate: float) -> Iterator[str]:
    """Accuracy of the main recipes on every kind of question, and what pruning does to the tokens of its answer."""
    names = main_recipes(by_recipe)
    yield from _head("kind", ["tokens of the answer", *names])
    for kind in (kind for kind in PRUNED if kind in set(by_recipe[BASE][0].kinds.values())):
        yield _row(kind, [PRUNED[kind], *(_percent(by_recipe[name], rates=[rate], kinds=[kind]) for name in names)])


def paired(by_recipe: Results) -> Iterator[str]:
    """Every recipe compared with the reference."""
    yield from _head("recipe", [f"minus `{REFERENCE}`", "95 % interval", "p", "± over seeds", "counts"])
    for name, results in by_recipe.items():
        if name not in (REFERENCE, BASE) and REFERENCE in by_recipe:
            yield _row(name, _compared(versus(results, by_recipe[REFERENCE])))


def _compared(one: Versus) -> list[str]:
    spread = "" if one.spread is None else f"{100 * one.spread:.1f}"
    counts = {None: "one seed", True: "yes", False: "no"}[one.exceeds]
    interval = f"{100 * one.paired.low:+.1f} to {100 * one.paired.high:+.1f}"
    return [f"{100 * one.mean:+.1f}", interval, f"{one.paired.p:.2g}", spread, counts]


def words(by_recipe: Results) -> Iterator[str]:
    """Conclusions from the tables, one sentence each."""
    best = winner(by_recipe)
    tried = len(by_recipe.keys() - {BASE, CONTROL})
    chosen = f"; as the highest of {tried} on the same questions it is partly chance" if tried > 1 else ""
    yield f"Highest mean over rates: `{best}`, {_percent(by_recipe[best])} %{chosen}."
    yield from (
        _against(by_recipe, best, other) for other in (PAPER, REFERENCE) if other in by_recipe and other != best
    )
    rates = by_recipe[BASE][0].rates
    for rate in (0.75, 0.85):
        if rate in rates and 0.0 in rates:
            lost = _lost(by_recipe, BASE, rate, None), _lost(by_recipe, best, rate, SERVED)
            yield f"From rate 0 to {rate:g} {lost[0]} on all kinds; {lost[1]} on the kinds that EVS can serve."
    if CONTROL in by_recipe and 0.0 in rates:
        one = _at(by_recipe, best, CONTROL, 0.0)
        yield f"At rate 0 `{best}` is {_points(one)} points from `{CONTROL}`{_spread(one)}."
    if "fixed" in by_recipe and best != "fixed":
        rate = max(rates, key=lambda rate: abs(_at(by_recipe, best, "fixed", rate).mean))
        one = _at(by_recipe, best, "fixed", rate)
        yield f"`{best}` is furthest from `fixed` at rate {rate:g}: {_points(one)} points{_spread(one)}."
    if {"input", "pixels"} <= by_recipe.keys():
        one = versus(by_recipe["input"], by_recipe["pixels"])
        yield f"Before the tower `input` is {_points(one)} points from `pixels`, the same score after it{_spread(one)}."
    if len(places := [name for name in PLACES if name in by_recipe]) > 2:
        means = ", ".join(f"`{name}` {_percent(by_recipe[name])}" for name in places)
        yield f"By the place in the tower, at equal operations: {means}."
    yield from _alike(by_recipe, best, by_recipe)
    stock = {name: by_recipe[name] for name in by_recipe if name in STOCK and name != CONTROL}
    if stock and best not in stock:
        first = winner(stock)
        yield f"Of the recipes that a stock server prunes `{first}` is highest, {_percent(by_recipe[first])} %."
        yield from _alike(by_recipe, first, stock)


def _alike(by_recipe: Results, best: str, among: Iterable[str]) -> Iterator[str]:
    names = [name for name in among if name not in (BASE, best)]
    if alike := [f"`{name}`" for name in names if versus(by_recipe[best], by_recipe[name]).exceeds is False]:
        yield f"No difference counts against `{best}`: {', '.join(alike)}."


def winner(by_recipe: Results) -> str:
    """The uptrained model with the highest mean over rates."""
    return max((name for name in by_recipe if name not in (BASE, CONTROL)), key=lambda name: _mean(by_recipe[name]))


def main_recipes(by_recipe: Results) -> list[str]:
    """The base, control, fixed, the reference, the paper's recipe and the winner."""
    names = dict.fromkeys((BASE, CONTROL, "fixed", REFERENCE, PAPER, winner(by_recipe)))
    return [name for name in names if name in by_recipe]


def curves(by_recipe: Results) -> list[Curve]:
    """Accuracy by rate of the main recipes."""
    return [
        Curve(name, {rate: _mean(by_recipe[name], rates=[rate]) for rate in by_recipe[name][0].rates})
        for name in main_recipes(by_recipe)
    ]


def _against(by_recipe: Results, best: str, other: str) -> str:
    one = versus(by_recipe[best], by_recipe[other])
    verdict = {None: "; one seed, so its spread is unknown", True: ", which counts", False: ", which does not count"}
    return f"`{best}` is {_points(one)} points above `{other}`{_spread(one)}{verdict[one.exceeds]}."


def _lost(by_recipe: Results, name: str, rate: float, kinds: Sequence[str] | None) -> str:
    lost = _mean(by_recipe[name], rates=[0.0], kinds=kinds) - _mean(by_recipe[name], rates=[rate], kinds=kinds)
    return f"`{name}` loses {100 * lost:.1f} points"


def _at(by_recipe: Results, one: str, other: str, rate: float) -> Versus:
    return versus(*([result.only(rates=[rate]) for result in by_recipe[name]] for name in (one, other)))


def _points(one: Versus) -> str:
    return f"{100 * one.mean:+.1f}"


def _spread(one: Versus) -> str:
    return "" if one.spread is None else f" (± {100 * one.spread:.1f})"


def _mean(results: Sequence[Result], **only: Any) -> float:
    return fmean(result.only(**only).accuracy for result in results)


def _percent(results: Sequence[Result], **only: Any) -> str:
    return f"{100 * _mean(results, **only):.1f}"


def _head(first: str, heads: Sequence[str]) -> Iterator[str]:
    yield _row(first, heads)
    yield "|---" * (len(heads) + 1) + "|"


def _row(first: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"
