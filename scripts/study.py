"""Compare recipes of uptraining at equal compute on the graded suite, over several seeds.

    python scripts/study.py preset=quick [seeds=[0]] [out=runs/study]      two CPU cores
    python scripts/study.py preset=full [recipes=[uniform,beta]]

For every seed it generates videos with known answers and trains a tiny base without pruning. From the base it trains
every recipe of scripts/recipes/table.py with as many operations as `uniform` takes, and the control with as many steps.
Two runs are trained in parallel. Run the command again to continue a study that was stopped. After every seed the
tables of all complete seeds are written between the markers of `page`, with a figure next to it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from data.synthetic import footage
from data.synthetic.items import KINDS
from data.synthetic.stills import write_stills
from data.synthetic.suite import CAMERAS, QUALITY, SIDE, Suite, generate
from scripts.make_tiny_model import make
from scripts.recipes.compute import steps_of
from scripts.recipes.page import insert, write
from scripts.recipes.runs import Job, Seed, complete, do_all
from scripts.recipes.table import BASE, BASE_SHARE, BASE_WORDS, COMPARED, SERVED, TRANSFER_RATES, Recipe, named
from train import cli
from train.ranges import names, number, pruning_rates

SIZES: dict[str, int | float | bool] = {  # of the tiny model
    **{"text_width": 128, "text_layers": 3, "text_kv_heads": 4, "text_mlp": 256, "patch": 8, "init": 0.08},
    **{"vision_width": 64, "vision_heads": 2, "vision_mlp": 128, "vision_depth": 2, "full_attention": True},
}
CONDITIONS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "moving": {"cameras": ("moving",)},
    "footage": {"backgrounds": ("carphone", "bikes")},
}


@dataclass(frozen=True)
class Preset:
    """The size of a study."""

    train_videos: int
    held_out_videos: int
    base_steps: int
    steps: int  # of the reference recipe
    suite: Suite


@dataclass
class Options:
    preset: str = names("quick", "quick", "full")  # size of the study
    seeds: list[int] = number([0], least=0, below=2**32, fewest=1, unique=True)  # of data, weights and runs
    recipes: list[str] = field(default_factory=list)  # names of recipes; []: all
    suite: str | None = None  # folder with train/ and held_out/ of make_suite.py, for all seeds; null: generate them
    train_videos: int | None = number(None, least=1)  # per seed; null: as in the preset, as for the next three
    held_out_videos: int | None = number(None, least=1)  # per seed
    base_steps: int | None = number(None, least=1)  # training steps without pruning
    steps: int | None = number(None, least=1)  # of `uniform`; all other recipes take as many operations
    condition: str = names("fixed", *CONDITIONS)  # of the videos: fixed or moving camera, or real footage
    rates: list[float] = pruning_rates([0.0, 0.5, 0.75, 0.85])  # pruning rates of the evaluations
    out: str = "runs/study"  # folder for data and runs
    page: str = "docs/recipes.md"  # Markdown file to update, with a figure of the same name next to it
    parallel: int = number(2, least=1)  # runs that are trained in parallel
    threads: int | None = number(None, least=1)  # threads of a run; null: the cores divided by `parallel`


def main(options: Options) -> None:
    recipes, preset, out = named(options.recipes), chosen(options), Path(options.out)
    if missing := {0.0, *TRANSFER_RATES} - set(options.rates):
        raise ValueError(f"rates={options.rates} lack {min(missing):g}, which the tables compare: add it")
    insert(Path(options.page), "")  # a page without markers is refused before the first run
    check_same(out, options, preset)
    complete_seeds: list[Seed] = []
    steps: dict[str, int] = {}  # by recipe; the same for all seeds
    for which in options.seeds:
        seed, rates = prepared(seed_of(options, which), preset, options), tuple(options.rates)
        base = (f"train.steps={preset.base_steps}", *BASE_WORDS)
        do_all([Job(seed, BASE, base, rates, BASE_SHARE)], options.parallel, options.threads)
        steps = steps or steps_of(recipes, preset.steps, seed)
        jobs = [job(seed, recipe, steps[recipe.name], rates) for recipe in recipes]
        do_all(jobs, options.parallel, options.threads)
        complete_seeds.append(seed)
        shown = replace(options, seeds=[one.number for one in complete_seeds])
        write(Path(options.page), complete_seeds, recipes, command(shown))
        print(f"page: {options.page}, of {len(complete_seeds)} of {len(options.seeds)} seeds", flush=True)


def job(seed: Seed, recipe: Recipe, steps: int, rates: tuple[float, ...]) -> Job:
    baselines = ("frames", "pixels") if recipe.name in COMPARED else tuple(filter(None, [recipe.reduced]))
    transfer = tuple(name for name in SERVED if recipe.native not in (None, name))
    words, trained = tuple(recipe.arguments(steps)), (recipe.stills, recipe.served, recipe.reduced)
    return Job(seed, recipe.name, words, rates, *trained, baselines, transfer)


def chosen(options: Options) -> Preset:
    """The preset, with its values replaced by those in `options`."""
    preset = quick() if options.preset == "quick" else full()
    overrides = {name: getattr(options, name) for name in ("train_videos", "held_out_videos", "base_steps", "steps")}
    suite = replace(preset.suite, **CONDITIONS[options.condition])
    return replace(preset, suite=suite, **{name: value for name, value in overrides.items() if value is not None})


def quick() -> Preset:
    kinds = ("late", "state", "count")  # a tiny model takes longer to learn the others
    return Preset(1200, 50, 600, 200, Suite(kinds=kinds, items=len(kinds), grids=(12,)))


def full() -> Preset:
    clips = tuple(clip for clip in footage.CLIPS if footage.find(clip))
    backgrounds = ("texture", *clips)
    suite = Suite(
        items=len(KINDS), cameras=CAMERAS, qualities=tuple(QUALITY), backgrounds=backgrounds, grids=(8, 16, 32)
    )
    return Preset(20_000, 500, 4000, 1500, suite)


def seed_of(options: Options, number: int) -> Seed:
    folder = Path(options.out) / f"seed{number}"
    return Seed(folder, number, folder if options.suite is None else Path(options.suite))


def prepared(seed: Seed, preset: Preset, options: Options) -> Seed:
    """Generate the videos of a seed and the random model from which its base starts, unless they exist."""
    if options.suite is None:
        for split, videos in (("train", preset.train_videos), ("held_out", preset.held_out_videos)):
            suite = replace(preset.suite, split=split, seed=seed.number)
            complete(seed.videos / split, partial(generate_split, videos=videos, suite=suite))
    for data in (seed.train, seed.held_out):
        if not data.is_file():
            raise ValueError(f"suite={seed.videos}: {data} does not exist: write it with scripts/make_suite.py")
    complete(seed.random, lambda folder: make("qwen2_5_vl", folder, seed.number, **SIZES))
    return seed


def generate_split(out: Path, videos: int, suite: Suite) -> None:
    """The data of one split. Held-out images and text are in one file with the videos, those to train on are not."""
    data, stills = generate(out, videos, suite), write_stills(out, videos, suite.split, suite.seed)
    if suite.split == "held_out":
        data.write_text(data.read_text() + stills.read_text())
        return
    random = np.random.default_rng(suite.seed)
    rows = [json.loads(line) for line in data.open()]
    for name, key, most in (("frames", "max_frames", 2 * suite.grids[0]), ("pixels", "max_pixels", SIDE * SIDE)):
        kept = 1 - random.uniform(0, 0.9, len(rows))
        reduced = [row | {key: max(2, round(most * share))} for row, share in zip(rows, kept)]
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reduced))


def check_same(out: Path, options: Options, preset: Preset) -> None:
    """Raise ValueError if `out` holds runs of another study; otherwise write the settings of this one to it."""
    settings = json.loads(
        json.dumps({"preset": asdict(preset), "sizes": SIZES, "suite": options.suite, "rates": options.rates})
    )
    path = out / "study.json"
    if path.is_file() and (earlier := json.loads(path.read_text())) != settings:
        differing = ", ".join(key for key in settings if earlier.get(key) != settings[key])
        raise ValueError(
            f"out={out} holds runs of another study, with a different {differing}: remove it, or give another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n")


def command(options: Options) -> str:
    """The command that writes this page, without default values."""
    keys = [option.name for option in fields(options)]
    shown = [key for key in keys if key in ("preset", "seeds") or getattr(options, key) != getattr(Options(), key)]
    words = " ".join(f"{key}={getattr(options, key)}" for key in shown)
    return "python scripts/study.py " + words.replace(", ", ",")


if __name__ == "__main__":
    cli.run(main, Options)
