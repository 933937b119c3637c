"""The whole story in minutes on a CPU, without a network: what pruning costs a model, and how uptraining wins it back.

    python scripts/demo.py out=runs/demo

Videos with known answers -> a tiny base model trained without pruning -> the base at every rate -> uptrained under
random rates -> the same number of further steps without pruning, as control -> export, table, curve, and the page of
the uptrained run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.synthetic.demo import generate
from scripts.make_tiny_model import make
from train import cli
from train.report.curve import Curve, from_results, plot, table

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "text_width": 128,
    "text_layers": 3,
    "text_kv_heads": 4,
    "text_mlp": 256,
    "patch": 8,
    "full_attention": True,
    "init": 0.08,
}
SIZES |= {"vision_width": 64, "vision_depth": 1, "vision_heads": 2, "vision_mlp": 128}


@dataclass
class Options:
    out: str = "runs/demo"  # a new folder
    train_videos: int = 3200  # synthetic ones, each with several questions
    eval_videos: int = 200  # held out
    base_steps: int = 400  # of training without pruning
    steps: int = 220  # of uptraining, and of the control
    rates: list[float] = field(
        default_factory=lambda: [0, 0.25, 0.5, 0.75, 0.8, 0.85, 0.9]
    )  # at which all models are measured
    seed: int = 0  # of videos, weights and training


def main(options: Options) -> None:
    out, begin = Path(options.out), time.monotonic()
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"out={out} is not empty: remove it, or give another folder")
    train = generate(out / "data" / "train", options.train_videos, options.seed)
    held_out = generate(out / "data" / "eval", options.eval_videos, options.seed + 1)
    demo = Demo(out, train, held_out, options)

    make("qwen2_5_vl", out / "random", options.seed, **SIZES)
    base = demo.train("base", out / "random", options.base_steps, "rate=constant", "optim.lr=1.2e-3")
    frozen = "model.freeze=[vision]"  # as in the real experiments
    uptrained = demo.train("uptrained", base, options.steps, "rate=uniform", frozen)
    control = demo.train("control", base, options.steps, "rate=constant", frozen)
    curves = [
        demo.evaluate(name, model)
        for name, model in (
            ("base, not trained for pruning", base),
            ("uptrained on U(0, .9)", uptrained),
            ("control, trained on at rate 0", control),
        )
    ]

    plot(curves, out / "curve.png", "Accuracy on synthetic videos, by pruning rate")
    (out / "table.md").write_text(table(curves) + "\n")
    print(f"\n{table(curves)}\n\n{sentence(*curves)}\n")
    demo.report("uptrained", ("base", "control", "uptrained"))
    print(f"picture: {out / 'curve.png'}\ntable: {out / 'table.md'}\ncheckpoint: {uptrained}")
    print(f"time: {(time.monotonic() - begin) / 60:.1f} minutes")


@dataclass(frozen=True)
class Demo:
    """Runs the project's own commands, each in a process of its own."""

    out: Path
    data: Path
    held_out: Path
    options: Options
    log: Path | None = None  # where they write; None: to the terminal

    def train(self, name: str, model: Path, steps: int, *words: str) -> Path:
        """The exported checkpoint of one run from `model`."""
        run, exported = self.out / name, self.out / f"{name}-checkpoint"
        words = (f"model.path={model}", f"data.train={self.data}", f"train.steps={steps}", f"run_dir={run}", *words)
        self._python(f"train {name}", "train/run.py", "+experiment=demo", f"seed={self.options.seed}", *words)
        self._python(f"export {name}", "scripts/export.py", f"run={run}", f"out={exported}")
        return exported

    def evaluate(self, name: str, model: Path, *more: str, file: str | None = None) -> Curve:
        """Accuracy by rate on the held-out videos."""
        result = self.out / f"{file or model.name}.json"
        rates = f"rates=[{','.join(map(str, self.options.rates))}]"
        words = [rates, f"name='{name}'", f"out={result}", "fps=4", "batch_size=20", "dtype=float32", *more]
        self._python(f"evaluate: {name}", "scripts/evaluate.py", f"model={model}", f"data={self.held_out}", *words)
        return from_results(result)

    def report(self, run: str, names: Sequence[str]) -> None:
        """The page of one run, with the curves of all."""
        results = ",".join(str(self.out / f"{name}-checkpoint.json") for name in names)
        page = self.out / "report.html"
        self._python("report", "scripts/report.py", f"run={self.out / run}", f"results=[{results}]", f"out={page}")

    def _python(self, about: str, script: str, *words: str) -> None:
        """Run one of the project's scripts; its failure is ours."""
        quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        with self.log.open("a") if self.log else nullcontext() as log:
            print(f"\n== {about}", file=log, flush=True)
            command = [sys.executable, str(ROOT / script), *words]
            done = subprocess.run(command, env={**os.environ, **quiet}, stdout=log, stderr=log)
        if done.returncode:
            raise SystemExit(done.returncode)


def sentence(base: Curve, uptrained: Curve, control: Curve) -> str:
    """What the curves say at the highest rate that leaves enough tokens to answer, in one sentence."""
    rate = max((r for r in base.accuracy if r <= 0.8), default=max(base.accuracy))
    a, b, c = (100 * curve.accuracy[rate] for curve in (base, uptrained, control))
    return (
        f"With {rate:.0%} of the video tokens removed, the base model answers {a:.1f} % of the questions, "
        f"the uptrained one {b:.1f} %, and {c:.1f} % after as many further steps without pruning; "
        f"without pruning they answer {100 * base.accuracy[0]:.1f}, {100 * uptrained.accuracy[0]:.1f} "
        f"and {100 * control.accuracy[0]:.1f} %."
    )


if __name__ == "__main__":
    cli.run(main, Options)
