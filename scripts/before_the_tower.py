"""Tokens dropped after the vision tower or before it: accuracy by rate on the demo's videos, one table a seed.

    python scripts/before_the_tower.py out=runs/before_the_tower seeds=[0,1,2] [blocks=4]

For every seed the base model of `scripts/demo.py`, as it is and uptrained: pruned by EVS after the tower, by pixels
before it, and trained for the one but pruned by the other. The last table is the mean over the seeds.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.synthetic.demo import generate
from scripts.demo import SIZES, Demo
from scripts.demo import Options as DemoOptions
from scripts.make_tiny_model import make
from train import cli
from train.report.curve import Curve, table

BEFORE = ("method=pixel_delta", "prune_at=input")  # of scripts/evaluate.py
TRAINED_BEFORE = ("method=pixel_delta", "method.prune_at=input")  # of train/run.py


@dataclass
class Options:
    out: str = "runs/before_the_tower"  # a new folder
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # of data, weights and runs
    blocks: int = 4  # of the vision tower
    train_videos: int = 3200  # synthetic ones, each with several questions
    eval_videos: int = 200  # held out
    base_steps: int = 400  # of training without pruning
    steps: int = 220  # of uptraining
    rates: list[float] = field(default_factory=lambda: [0, 0.5, 0.75, 0.85, 0.9])


def main(options: Options) -> None:
    runs = [curves(Path(options.out) / f"seed{seed}", seed, options) for seed in options.seeds]
    text = [f"seed {seed}\n\n{table(each)}" for seed, each in zip(options.seeds, runs)]
    means = [
        Curve(same[0].name, {rate: mean(curve.accuracy[rate] for curve in same) for rate in options.rates})
        for same in zip(*runs)
    ]
    text.append(f"mean of {len(runs)}\n\n{table(means)}")
    Path(options.out, "tables.md").write_text("\n\n".join(text) + "\n")
    print("\n" + "\n\n".join(text))


def curves(out: Path, seed: int, options: Options) -> list[Curve]:
    """One seed's accuracies, by rate."""
    if out.exists():
        raise ValueError(f"out={out} exists: remove it, or give another folder")
    train = generate(out / "data" / "train", options.train_videos, seed)
    held_out = generate(out / "data" / "eval", options.eval_videos, seed + 1)
    demo = Demo(out, train, held_out, DemoOptions(rates=options.rates, seed=seed))
    make("qwen2_5_vl", out / "random", seed, **SIZES | {"vision_depth": options.blocks})
    base = demo.train("base", out / "random", options.base_steps, "rate=constant", "optim.lr=1.2e-3")
    frozen = "model.freeze=[vision]"
    merger = demo.train("merger", base, options.steps, "rate=uniform", frozen)
    fixed = demo.train("input-frozen", base, options.steps, "rate=uniform", frozen, *TRAINED_BEFORE)
    whole = demo.train("input-trained", base, options.steps, "rate=uniform", *TRAINED_BEFORE)
    return [
        demo.evaluate("base, after", base),
        demo.evaluate("base, before", base, *BEFORE, file="base-before"),
        demo.evaluate("uptrained after, served after", merger),
        demo.evaluate("uptrained after, served before", merger, *BEFORE, file="merger-before"),
        demo.evaluate("uptrained before, tower frozen", fixed),
        demo.evaluate("uptrained before, tower trained", whole),
    ]


if __name__ == "__main__":
    cli.run(main, Options)
