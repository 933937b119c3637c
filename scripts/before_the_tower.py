"""Tokens dropped after the vision tower or before it: accuracy by rate on the demo's videos, one table a seed.

    python scripts/before_the_tower.py out=runs/before_the_tower seeds=[0,1,2] [blocks=4] [jobs=2] [page=FILE.md]

For every seed the base model of `scripts/demo.py`, as it is and uptrained: pruned by EVS after the tower, by pixels
before it, trained for the one but pruned by the other, and trained with the place drawn anew for every step. The first
table is the mean over the seeds. Given again after a stop, the command makes what is missing; every run's output is in
out/seedN/*.log.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.progress import progress_bar
from data.synthetic.demo import generate
from evs.policy import FILE
from scripts.demo import SIZES, Demo
from scripts.demo import Options as DemoOptions
from scripts.make_tiny_model import make
from train import cli
from train.ranges import number, pruning_rates
from train.reports import marked
from train.reports.curve import Curve, from_results, plot, table

NAME, HIGH = "before_the_tower", 0.85
FROZEN, BY_PIXELS = "model.freeze=[vision]", "method=pixel_delta"
TRAINED = {  # run: words of train/run.py
    "after": [FROZEN],
    "before": [FROZEN, BY_PIXELS, "method.prune_at=input"],
    "before-trained": [BY_PIXELS, "method.prune_at=input"],
    "drawn": [FROZEN, "method=drawn", "method.methods.evs.dtype=null"],
}
BEFORE = [BY_PIXELS, "prune_at=input"]
CURVES = {  # file: (name, run, words of scripts/evaluate.py)
    "base-after": ("base, pruned after", "base", []),
    "base-before": ("base, pruned before", "base", BEFORE),
    "after-after": ("uptrained after, pruned after", "after", []),
    "after-before": ("uptrained after, pruned before", "after", BEFORE),
    "before-before": ("uptrained before, pruned before", "before", []),
    "before-trained-before": ("the same, tower trained", "before-trained", []),
    "drawn-after": ("place drawn, pruned after", "drawn", []),
    "drawn-before": ("place drawn, pruned before", "drawn", BEFORE),
}


@dataclass
class Options:
    out: str = "runs/before_the_tower"  # a new folder, or one that these options have begun
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # of data, weights and runs
    jobs: int = number(2, least=1)  # runs side by side, which share the cores
    blocks: int = number(4, least=1)  # of the vision tower
    train_videos: int = number(3200, least=1)  # synthetic ones, each with several questions
    eval_videos: int = number(200, least=1)  # held out
    base_steps: int = number(600, least=1)  # of training without pruning
    steps: int = number(220, least=1)  # of uptraining
    rates: list[float] = pruning_rates([0, 0.5, 0.75, 0.85, 0.9])  # at which all models are measured
    page: str | None = None  # Markdown file whose figures, between two marks, are replaced


def main(options: Options) -> None:
    out, page = Path(options.out), Path(options.page) if options.page else None
    if page:
        marked.check(page, NAME)
    claim(out, options)
    seeds = [Seed(out / f"seed{seed}", seed, options) for seed in options.seeds]
    work(seeds, options)
    curves = [seed.curves() for seed in seeds]
    means = [averaged(same) for same in zip(*curves)]
    numbers, blocks = ", ".join(map(str, options.seeds)), "block" if options.blocks == 1 else "blocks"
    title = f"mean of {len(seeds)} seeds ({numbers}), tower of {options.blocks} {blocks}"
    tables = "\n\n".join(f"seed {seed.seed}:\n\n{table(each)}" for seed, each in zip(seeds, curves))
    whole = f"Accuracy in %, {title}:\n\n{table(means)}\n\n{sentence(curves)}\n\n{tables}"
    print(f"\n{whole}")
    (out / "tables.md").write_text(whole + "\n")
    plot(means, out / "curve.png", f"Accuracy on synthetic videos, {title}")
    if page:
        shutil.copyfile(out / "curve.png", page.with_suffix(".png"))
        marked.put(page, NAME, f"![Accuracy by pruning rate]({page.stem}.png)\n\n{whole}")


def averaged(same: Sequence[Curve]) -> Curve:
    """The mean of several seeds' curves."""
    rates = same[0].accuracy
    return Curve(same[0].name, {rate: mean(curve.accuracy[rate] for curve in same) for rate in rates})


def sentence(seeds: Sequence[Sequence[Curve]]) -> str:
    """What uptraining for the place before the tower costs against uptraining after it, up to the rate `HIGH`."""
    numbers = [list(CURVES).index(file) for file in ("after-after", "before-before")]
    after, before = (averaged([curves[number] for curves in seeds]).accuracy for number in numbers)
    lost = {rate: 100 * (after[rate] - before[rate]) for rate in after if rate <= HIGH}
    worst = max(lost, key=lambda rate: lost[rate])
    within = "within a point" if round(lost[worst], 1) <= 1 else "not within a point"
    return (
        f"Up to {HIGH:g}, uptrained and pruned before the tower is {within} of uptrained and pruned after it: the most "
        f"that it loses is {lost[worst]:.1f}, at {worst:g}."
    )


def claim(out: Path, options: Options) -> None:
    """Write beside the results what they were made with. ValueError for a folder that other options have begun."""
    own = {key: value for key, value in asdict(options).items() if key not in ("out", "seeds", "jobs", "page")}
    path = out / "options.json"
    there = (
        json.loads(path.read_text()) if path.is_file() else own if not out.exists() or not any(out.iterdir()) else {}
    )
    if other := [key for key in own if there.get(key) != own[key]]:
        raise ValueError(
            f"out={out} was begun with {other[0]}={there.get(other[0])}: give that, remove it, or give another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(own, indent=2) + "\n")


def work(seeds: list[Seed], options: Options) -> None:
    """All runs of all seeds, some side by side; the first that fails ends it."""
    pool = ThreadPoolExecutor(options.jobs)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.jobs)))
    try:
        # A run waits for its seed's base, which stands before it in the queue: it is done or under way.
        bases = {seed: pool.submit(seed.base) for seed in seeds}
        steps = dict.fromkeys(bases.values(), options.base_steps)
        steps |= {pool.submit(seed.uptrain, name, bases[seed]): options.steps for seed in seeds for name in TRAINED}
        with progress_bar(total=sum(steps.values()), unit="step") as bar:
            for done in as_completed(steps):
                bar.set_postfix_str(f"done: {done.result()}")
                bar.update(steps[done])
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, eq=False)
class Seed:
    """One seed's data and runs, of which those that are there are not made again."""

    out: Path
    seed: int
    options: Options

    def base(self) -> Path:
        """The checkpoint trained without pruning, evaluated."""
        for name, videos, seed in (("train", self.options.train_videos, 0), ("eval", self.options.eval_videos, 1)):
            if not self._data(name).is_file():
                generate(self._data(name).parent, videos, self.seed + seed)
        make("qwen2_5_vl", self.out / "random", self.seed, **SIZES | {"vision_depth": self.options.blocks})
        words = ("rate=constant", "optim.lr=1.2e-3")
        return self._run("base", self.out / "random", self.options.base_steps, *words)

    def uptrain(self, name: str, base: Future[Path]) -> Path:
        """The checkpoint of one of `TRAINED`, evaluated."""
        return self._run(name, base.result(), self.options.steps, "rate=uniform", *TRAINED[name])

    def curves(self) -> list[Curve]:
        return [from_results(self.out / f"{file}.json") for file in CURVES]

    def _run(self, name: str, model: Path, steps: int, *words: str) -> Path:
        options = DemoOptions(rates=self.options.rates, seed=self.seed)
        demo = Demo(self.out, self._data("train"), self._data("eval"), options, self.out / f"{name}.log")
        checkpoint = self.out / f"{name}-checkpoint"
        if not (checkpoint / FILE).is_file():
            shutil.rmtree(checkpoint, ignore_errors=True)  # half an export
            demo.train(name, model, steps, "resume=auto", "train.save_every=100", *words)
        for file, (title, run, more) in CURVES.items():
            if run == name and not (self.out / f"{file}.json").is_file():
                demo.evaluate(title, checkpoint, *more, file=file)
        return checkpoint

    def _data(self, name: str) -> Path:
        return self.out / "data" / name / "data.jsonl"


if __name__ == "__main__":
    cli.run(main, Options)
