"""The study as a page in Markdown: by rate, by kind of question, paired, and in words."""

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

Results = Mapping[str, Sequence[Result]]  # by recipe, one a seed
SERVED = [kind for kind in PRUNED if kind not in LOST]


def write(page: Path, seeds: Sequence[Seed], recipes: Sequence[Recipe], command: str, blocks: int) -> None:
    """The page, and a figure of the same name beside it."""
    found = {name: [read(seed, name) for seed in seeds] for name in (BASE, *(each.name for each in recipes))}
    figure = page.with_suffix(".png")
    text = (
        "\n".join(_lines(found, recipes, command, figure.name, blocks)) + "\n"
    )  # names the commit before files differ from it
    page.parent.mkdir(parents=True, exist_ok=True)
    plot(curves(found), figure, "Accuracy on the graded suite, by pruning rate")
    page.write_text(text)


def _lines(found: Results, recipes: Sequence[Recipe], command: str, figure: str, blocks: int) -> Iterator[str]:
    from_machine, one = machine(), found[BASE][0]
    seeds = f"seed{'s' * (len(found[BASE]) > 1)} " + ", ".join(str(each.seed) for each in found[BASE])
    yield "# Recipes\n"
    yield (
        f"Which way of uptraining holds best under pruning: a tiny model, its vision tower of {blocks} "
        f"block{'s' * (blocks > 1)}, on the graded suite (`make_suite.py`), "
        f"{len(one.kinds)} questions a seed, {seeds}. Every recipe starts from the same base and takes as many "
        f"operations as `{REFERENCE}`; `{CONTROL}` takes as many steps. What a deeper tower changes stands in "
        "docs/before_the_tower.md. Made by\n"
    )
    yield f"    {command}\n"
    yield f"at commit {from_machine['commit']} on {from_machine['device']}.\n"
    yield f"![Accuracy by pruning rate]({figure})\n"
    yield "| recipe | |\n|---|---|"
    yield from (f"| `{each.name}` | {each.about} |" for each in recipes)
    yield "\n## By rate\n\nAccuracy in %, mean over seeds; ± is the standard deviation of the mean over seeds.\n"
    yield from by_rate(found)
    yield "\n## What follows\n"
    yield from (f"- {line}" for line in words(found))
    yield f"\n## Differences\n\nOf the mean over rates, in points, on the same questions. {EXCEEDS}\n"
    yield from paired(found)
    yield "\n## By kind of question\n"
    yield from (f"- `{kind}`: {about}" for kind, about in PRUNED.items() if kind in set(one.kinds.values()))
    for rate in one.rates:
        yield f"\nAt rate {rate:g}:\n"
        yield from by_kind(found, rate)


EXCEEDS = "A difference counts where it is above its standard deviation over seeds and its paired test gives p < .05."


def by_rate(found: Results) -> Iterator[str]:
    rates = found[BASE][0].rates
    heads = [*(f"{rate:g}" for rate in rates), "mean", "±", "steps", "10^12 operations"]
    yield from _head("recipe", heads)
    for name, results in found.items():
        cells = [_percent(results, rates=[rate]) for rate in rates]
        means = [100 * each.accuracy for each in results]
        spread = f"{stdev(means):.1f}" if len(means) > 1 else ""
        spent = [f"{results[0].steps}", f"{fmean(each.operations for each in results) / 1e12:.2f}"]
        yield _row(name, [*cells, f"{fmean(means):.1f}", spread, *spent])


def by_kind(found: Results, rate: float) -> Iterator[str]:
    kinds = [kind for kind in PRUNED if kind in set(found[BASE][0].kinds.values())]
    yield from _head("recipe", kinds)
    for name, results in found.items():
        yield _row(name, [_percent(results, rates=[rate], kinds=[kind]) for kind in kinds])


def paired(found: Results) -> Iterator[str]:
    """Each recipe against the reference and against the paper's."""
    yield from _head("recipe", ["against", "difference", "95 % interval", "p", "± over seeds", "counts"])
    for other in (REFERENCE, PAPER):
        for name in found:
            if name not in (other, BASE) and other in found:
                yield _row(name, [f"`{other}`", *_compared(versus(found[name], found[other]))])


def _compared(one: Versus) -> list[str]:
    spread = "" if one.spread is None else f"{100 * one.spread:.1f}"
    counts = {None: "one seed", True: "yes", False: "no"}[one.exceeds]
    interval = f"{100 * one.paired.low:+.1f} to {100 * one.paired.high:+.1f}"
    return [f"{100 * one.mean:+.1f}", interval, f"{one.paired.p:.2g}", spread, counts]


def words(found: Results) -> Iterator[str]:
    """What the tables say, whichever way it went."""
    best = winner(found)
    tried = len(found.keys() - {BASE, CONTROL})
    chosen = f"; as the highest of {tried} on the same questions it is partly chance" if tried > 1 else ""
    yield f"Highest mean over rates: `{best}`, {_percent(found[best])} %{chosen}."
    yield from (_against(found, best, other) for other in (PAPER, REFERENCE) if other in found and other != best)
    rates = found[BASE][0].rates
    for rate in (0.75, 0.85):
        if rate in rates and 0.0 in rates:
            lost = _lost(found, BASE, rate, None), _lost(found, best, rate, SERVED)
            yield f"From rate 0 to {rate:g} {lost[0]} on all kinds; {lost[1]} on the kinds that EVS can serve."
    if CONTROL in found and 0.0 in rates:
        one = _at(found, best, CONTROL, 0.0)
        yield f"At rate 0 `{best}` is {_points(one)} points from `{CONTROL}`{_spread(one)}."
    if "fixed" in found and best != "fixed":
        rate = max(rates, key=lambda rate: abs(_at(found, best, "fixed", rate).mean))
        one = _at(found, best, "fixed", rate)
        yield f"`{best}` is furthest from `fixed` at rate {rate:g}: {_points(one)} points{_spread(one)}."
    if {"input", "pixels"} <= found.keys():
        one = versus(found["input"], found["pixels"])
        yield f"Before the tower `input` is {_points(one)} points from `pixels`, the same score after it{_spread(one)}."
    if len(places := [name for name in PLACES if name in found]) > 2:
        means = ", ".join(f"`{name}` {_percent(found[name])}" for name in places)
        yield f"By the place in the tower, at equal operations: {means}."
    yield from _alike(found, best, found)
    stock = {name: found[name] for name in found if name in STOCK and name != CONTROL}
    if stock and best not in stock:
        first = winner(stock)
        yield f"Of the recipes that a stock server prunes `{first}` is highest, {_percent(found[first])} %."
        yield from _alike(found, first, stock)


def _alike(found: Results, best: str, among: Iterable[str]) -> Iterator[str]:
    names = [name for name in among if name not in (BASE, best)]
    if alike := [f"`{name}`" for name in names if versus(found[best], found[name]).exceeds is False]:
        yield f"No difference counts against `{best}`: {', '.join(alike)}."


def winner(found: Results) -> str:
    """The uptrained model with the highest mean over rates."""
    return max((name for name in found if name not in (BASE, CONTROL)), key=lambda name: _mean(found[name]))


def curves(found: Results) -> list[Curve]:
    """Of those that the question is about: base, control, fixed, the reference, the paper's and the winner."""
    shown = [name for name in dict.fromkeys((BASE, CONTROL, "fixed", REFERENCE, PAPER, winner(found))) if name in found]
    return [Curve(name, {rate: _mean(found[name], rates=[rate]) for rate in found[name][0].rates}) for name in shown]


def _against(found: Results, best: str, other: str) -> str:
    one = versus(found[best], found[other])
    verdict = {None: "; one seed, so its spread is unknown", True: ", which counts", False: ", which does not count"}
    return f"`{best}` is {_points(one)} points above `{other}`{_spread(one)}{verdict[one.exceeds]}."


def _lost(found: Results, name: str, rate: float, kinds: Sequence[str] | None) -> str:
    lost = _mean(found[name], rates=[0.0], kinds=kinds) - _mean(found[name], rates=[rate], kinds=kinds)
    return f"`{name}` loses {100 * lost:.1f} points"


def _at(found: Results, one: str, other: str, rate: float) -> Versus:
    return versus(*([each.only(rates=[rate]) for each in found[name]] for name in (one, other)))


def _points(one: Versus) -> str:
    return f"{100 * one.mean:+.1f}"


def _spread(one: Versus) -> str:
    return "" if one.spread is None else f" (± {100 * one.spread:.1f})"


def _mean(results: Sequence[Result], **only: Any) -> float:
    return fmean(each.only(**only).accuracy for each in results)


def _percent(results: Sequence[Result], **only: Any) -> str:
    return f"{100 * _mean(results, **only):.1f}"


def _head(first: str, heads: Sequence[str]) -> Iterator[str]:
    yield _row(first, heads)
    yield "|---" * (len(heads) + 1) + "|"


def _row(first: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"
