"""The study as part of a Markdown page, with a figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from scripts.recipes.results import Results, read
from scripts.recipes.runs import Seed
from scripts.recipes.table import BASE, CONTROL, REFERENCE, TRANSFER_RATES, Recipe
from scripts.recipes.tables import by_kind, by_rate, equal_tokens, main_recipes, stills, transfer
from train.metrics.machine import machine
from train.reports.curve import Curve, plot

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
KIND_RATE = 0.85  # pruning rate of the table by kind of question


def write(page: Path, seeds: Sequence[Seed], recipes: Sequence[Recipe], command: str) -> None:
    """Write the study between the markers of `page`, and a figure of the same name next to it.

    A page that does not exist is created; text outside the markers stays. ValueError if a page has no markers.
    """
    trained = {BASE: None} | {recipe.name: recipe for recipe in recipes}
    by_recipe = {name: [read(seed, name, recipe) for seed in seeds] for name, recipe in trained.items()}
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
    rate = KIND_RATE if KIND_RATE in base.rates else max(base.rates)
    yield f"    {command}"
    seeds = ", ".join(str(result.seed) for result in by_recipe[BASE])
    yield (
        f"A tiny model on the graded suite (`make_suite.py`): {len(base.kinds)} questions per seed, also on images and "
        f"text, seeds {seeds}, commit {about_machine['commit']}, {about_machine['device']}.\n\n"
        f"- Every recipe starts from the same base and takes as many operations as `{REFERENCE}`; `{CONTROL}` takes as "
        "many steps.\n"
        "- Columns: accuracy in % by pruning rate, mean over seeds; ± is the standard deviation of their mean over "
        "seeds.\n"
        f"- Verdict: the difference from `{REFERENCE}` on the same questions counts if it is above its own standard "
        "deviation over seeds and its paired test gives p < .05; otherwise it is a tie."
    )
    yield f"Area of the score for tokens whose pixels changed, by seed: {areas(by_recipe)}."
    yield by_rate(by_recipe, about)
    yield f"![Accuracy by pruning rate]({figure})"
    yield f"Accuracy by kind of question at rate {rate:g}:"
    yield by_kind(by_recipe, rate)
    if REFERENCE in by_recipe:
        losses = ", ".join(
            f"{100 * (one.only(rates=[rate]).accuracy - one.only(rates=[0.0]).accuracy):+.1f}"
            for one in by_recipe[REFERENCE]
        )
        yield f"`{REFERENCE}` at rate {rate:g} minus its own rate 0, by seed, in points: {losses}."
    yield "The same models, pruned and unpruned on reduced videos with as few tokens:"
    yield equal_tokens(by_recipe)
    yield (
        "Trained under one method, served under another: mean accuracy at rates "
        f"{' and '.join(f'{rate:g}' for rate in TRANSFER_RATES)}, ± over seeds:"
    )
    yield transfer(by_recipe)
    yield f"Accuracy on images and text, at rate 0, and minus `{CONTROL}`:"
    yield stills(by_recipe)


def areas(by_recipe: Results) -> str:
    """The area of the base and of the reference in every seed."""
    shown = {name: by_recipe[name] for name in (BASE, REFERENCE) if name in by_recipe}
    return "; ".join(
        f"{name} {', '.join(f'{result.area:.3f}' for result in results if result.area is not None)}"
        for name, results in shown.items()
    )


def curves(by_recipe: Results) -> list[Curve]:
    """Accuracy by rate of the main recipes, where they have it."""
    return [
        Curve(name, {rate: fmean(one.only(rates=[rate]).accuracy for one in results) for rate in results[0].rates})
        for name, results in ((name, by_recipe[name]) for name in main_recipes(by_recipe))
    ]
