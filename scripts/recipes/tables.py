"""The tables of the study's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

from data.synthetic.items import PRUNED
from data.synthetic.stills import STILLS
from scripts.recipes.results import Difference, Result, Results, difference, on_stills
from scripts.recipes.table import BASE, COMPARED, CONTROL, REFERENCE, SERVED
from train.reports.equal_tokens import NAMES
from train.reports.markdown import markdown_table

NOT_REACHED = "not reached"  # no video can be reduced to the tokens of this rate
REDUCED = ("fewer_frames", "smaller_frames")
MIXED = (BASE, CONTROL, "stills_0", REFERENCE, "stills_25")  # of the table on images and text


def by_rate(by_recipe: Results, about: Mapping[str, str]) -> str:
    """A table of accuracy, one row per recipe and one column per rate, and differences from the reference."""
    rates = by_recipe[BASE][0].rates
    rows = []
    for name, results in by_recipe.items():
        cells = [_percent(results, rates=[rate]) for rate in rates]
        means = [100 * result.accuracy for result in results]
        spread = f"{stdev(means):.1f}" if len(means) > 1 else ""
        mean = [NOT_REACHED, ""] if NOT_REACHED in cells else [f"{fmean(means):.1f}", spread]
        compared = REFERENCE in by_recipe and name not in (BASE, REFERENCE)
        change = _cells(difference(results, by_recipe[REFERENCE])) if compared else [""] * len(_header(REFERENCE))
        rows.append([name, about.get(name, "before uptraining"), *cells, *mean, str(results[0].steps), *change])
    header = ["recipe", "", *(f"{rate:g}" for rate in rates), "mean", "±", "steps", *_header(REFERENCE)]
    return markdown_table(header, rows)


def by_kind(by_recipe: Results, rate: float) -> str:
    """A table of the main recipes' accuracy on every kind of question, and what pruning does to its answer's tokens."""
    names, kinds = main_recipes(by_recipe), set(by_recipe[BASE][0].kinds.values())
    rows = [
        [kind, tokens, *(_percent(by_recipe[name], rates=[rate], kinds=[kind]) for name in names)]
        for kind, tokens in PRUNED.items()
        if kind in kinds
    ]
    return markdown_table(["kind", "tokens of the answer", *names], rows)


def equal_tokens(by_recipe: Results) -> str:
    """A table of models pruned, and unpruned on fewer and on smaller frames with as few tokens."""
    shown = [name for name in COMPARED if name in by_recipe]
    kinds = [kind for kind in NAMES if any(one.reduced.get(kind) for name in shown for one in by_recipe[name])]
    rows = [
        [name, f"{rate:g}", _percent(by_recipe[name], rates=[rate])]
        + [cell for kind in kinds for cell in _against(by_recipe[name], kind, rate)]
        for name in shown
        for rate in by_recipe[name][0].rates
        if rate
    ]
    columns = [column for kind in kinds for column in (NAMES[kind], "pruned minus these")]
    return markdown_table(["recipe", "rate", "pruned", *columns], rows)


def _against(results: Sequence[Result], kind: str, rate: float) -> list[str]:
    """Accuracy on reduced videos, and what pruning has more."""
    reduced = [replace(one, answers=one.reduced.get(kind, ())).only(rates=[rate]) for one in results]
    if not all(one.answers for one in reduced):
        return [NOT_REACHED, ""]
    change = difference([one.only(rates=[rate]) for one in results], reduced)
    kept = fmean(one.kept[kind, rate] for one in results)
    return [
        f"{_percent(reduced)} at {100 * kept:.0f} %",
        f"{100 * change.mean:+.1f} ({_interval(change)}), {_verdict(change)}",
    ]


def transfer(by_recipe: Results) -> str:
    """A table of accuracy under every method of SERVED, one row per recipe that is evaluated under all."""
    rows = [
        [name, *(_mean_and_spread([100 * one.served[served] for one in results]) for served in SERVED)]
        for name, results in by_recipe.items()
        if all(one.served for one in results)
    ]
    return markdown_table(["trained", *(f"served by {served}" for served in SERVED)], rows)


def stills(by_recipe: Results) -> str:
    """A table of accuracy on images and text, which do not get pruned."""
    rows = []
    for name, results in ((name, by_recipe[name]) for name in MIXED if name in by_recipe):
        change = [""] * len(_header(CONTROL))
        if CONTROL in by_recipe and name not in (BASE, CONTROL):
            change = _cells(difference(on_stills(results), on_stills(by_recipe[CONTROL])))
        rows.append([name, *(_percent(on_stills(results, kind)) for kind in STILLS), *change])
    return markdown_table(["recipe", *STILLS, *_header(CONTROL)], rows)


def main_recipes(by_recipe: Results) -> list[str]:
    """The base, control, the reference, the one with the highest mean over rates, and those on reduced videos."""
    complete = [name for name, results in by_recipe.items() if results[0].rates == by_recipe[BASE][0].rates]
    uptrained = [name for name in complete if name not in (BASE, CONTROL, *REDUCED)]
    best = max(uptrained, key=lambda name: fmean(one.accuracy for one in by_recipe[name]), default=BASE)
    return [name for name in dict.fromkeys((BASE, CONTROL, REFERENCE, best, *REDUCED)) if name in by_recipe]


def _header(reference: str) -> list[str]:
    """The columns of `_cells`."""
    return [f"minus `{reference}`", "95 % interval", "± over seeds", "verdict"]


def _cells(one: Difference) -> list[str]:
    spread = "" if one.spread is None else f"{100 * one.spread:.1f}"
    return [f"{100 * one.mean:+.1f}", _interval(one), spread, _verdict(one)]


def _interval(one: Difference) -> str:
    return f"{100 * one.paired.low:+.1f} to {100 * one.paired.high:+.1f}"


def _verdict(one: Difference) -> str:
    if one.counts is None:
        return "one seed"
    return ("better" if one.mean > 0 else "worse") if one.counts else "tie"


def _mean_and_spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _percent(results: Sequence[Result], **only: Any) -> str:
    chosen = [result.only(**only) for result in results]
    return f"{100 * fmean(one.accuracy for one in chosen):.1f}" if all(one.answers for one in chosen) else NOT_REACHED
