"""A demonstration in minutes on a CPU, without a network: the accuracy that pruning costs and uptraining restores.

    python scripts/demo.py out=runs/demo

It generates videos with known answers and trains a tiny base model without pruning. From the base it trains one model
under random rates, and one without pruning for as many steps as control. All are evaluated at every rate and exported.
The uptrained model is also evaluated without pruning on fewer and on smaller frames, with as many tokens.
The results are a table, a curve and the report of the uptrained run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.encoding.reduction import REDUCTIONS
from data.synthetic.demo import generate
from scripts.make_tiny_model import make
from train import cli
from train.ranges import number, pruning_rates
from train.reports.curve import Curve, from_results, plot, table
from train.reports.equal_tokens import equal_tokens_text

# Each process has one thread: on two cores, two such processes are faster than one process with two threads.
RANKS, BATCH = 2, 16  # ranks of the base run; samples of a step, as in configs/experiment/demo.yaml
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
    train_videos: int = number(3200, least=1)  # generated videos, each with several questions
    eval_videos: int = number(200, least=1)  # held out
    base_steps: int = number(400, least=1)  # of training without pruning
    steps: int = number(220, least=1)  # of uptraining, and of the control
    rates: list[float] = pruning_rates([0, 0.25, 0.5, 0.75, 0.8, 0.85, 0.9])  # at which all models are measured
    seed: int = number(0, least=0, below=2**32)  # of videos, weights and training


def main(options: Options) -> None:
    out, begin = Path(options.out), time.monotonic()
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"out={out} is not empty: remove it, or give another folder")
    train = generate(out / "data" / "train", options.train_videos, options.seed)
    held_out = generate(out / "data" / "eval", options.eval_videos, options.seed + 1)
    demo = Demo(out, train, held_out, options)

    make("qwen2_5_vl", out / "random", options.seed, **SIZES)
    shared = ("engine=ddp", f"train.batch_size={BATCH // RANKS}")
    base = replace(demo, ranks=RANKS).train(
        "base", out / "random", options.base_steps, "rate=constant", "optim.lr=1.2e-3", *shared
    )
    frozen = "model.freeze=[vision]"  # as in the real experiments
    logged = replace(demo, log=out / "control.log")
    with ThreadPoolExecutor(1) as background:
        before = background.submit(logged.evaluate, "base, not trained for pruning", base)
        started = background.submit(logged.train, "control", base, options.steps, "rate=constant", frozen)
        uptrained = demo.train("uptrained", base, options.steps, "rate=uniform", frozen)
        after = demo.evaluate("uptrained on U(0, .9)", uptrained, f"baselines=[{','.join(REDUCTIONS)}]")
        control = demo.evaluate("control, trained further at rate 0", started.result())
        curves = [before.result(), after, control]
    demo.export("base", ["base"])
    for name in ("control", "uptrained"):
        demo.export(name, ["base", name])

    plot(curves, out / "curve.png", "Accuracy on synthetic videos, by pruning rate")
    text = "\n\n".join([table(curves), sentence(*curves), *equal_tokens_text(after.baselines)])
    (out / "table.md").write_text(text + "\n")
    print(f"\n{text}\n")
    demo.report("uptrained", ("base", "control", "uptrained"))
    print(f"picture: {out / 'curve.png'}\ntable: {out / 'table.md'}\ncheckpoint: {uptrained}")
    print(f"card, with the curve and the recommended rate: {uptrained / 'README.md'}")
    print(f"time: {(time.monotonic() - begin) / 60:.1f} minutes")


@dataclass(frozen=True)
class Demo:
    """Runs the project's commands in processes of their own."""

    out: Path
    data: Path
    held_out: Path
    options: Options
    log: Path | None = None  # file for their output; None: the terminal
    ranks: int = 1  # ranks of a run

    def train(self, name: str, model: Path, steps: int, *words: str) -> Path:
        """The exported checkpoint of one run from `model`."""
        run = self.out / name
        paths = {"model.path": model, "data.train": self.data, "run_dir": run}
        words = (*(cli.override(key, path) for key, path in paths.items()), f"train.steps={steps}", *words)
        started = (*cli.launcher(self.ranks), str(ROOT / "train" / "run.py"))
        self._python(f"train {name}", *started, "+experiment=demo", f"seed={self.options.seed}", *words)
        return self.export(name)

    def export(self, name: str, measured: Sequence[str] = ()) -> Path:
        """The exported checkpoint of a run. Its card shows the curves of the runs `measured`, and `evs.json` holds the
        last one, which is that of the run itself."""
        exported = self.checkpoint(name)
        results = [f"results=[{','.join(str(self.scores(run)) for run in measured)}]"] if measured else []
        self._python(f"export {name}", script("export"), f"run={self.out / name}", f"out={exported}", *results)
        return exported

    def checkpoint(self, name: str) -> Path:
        """The folder that a run is exported to."""
        return self.out / f"{name}-checkpoint"

    def scores(self, name: str) -> Path:
        """The JSON that the evaluation of a run's checkpoint writes."""
        return self.out / f"{self.checkpoint(name).name}.json"

    def evaluate(self, name: str, model: Path, *more: str) -> Curve:
        """Accuracy by rate on the held-out videos."""
        result = self.out / f"{model.name}.json"
        rates = f"rates=[{','.join(map(str, self.options.rates))}]"
        words = [rates, f"name={name}", f"out={result}", "fps=4", "batch_size=20", "dtype=float32"]
        self._python(f"evaluate: {name}", script("evaluate"), f"model={model}", f"data={self.held_out}", *words, *more)
        return from_results(result)

    def report(self, run: str, names: Sequence[str]) -> None:
        """Write the report of one run, with the curves of all."""
        results = ",".join(str(self.scores(name)) for name in names)
        page = self.out / "report.html"
        self._python("report", script("report"), f"run={self.out / run}", f"results=[{results}]", f"out={page}")

    def _python(self, title: str, *words: str) -> None:
        """Run one of the project's scripts. If it fails, end with its exit status."""
        quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        quiet |= {"CUDA_VISIBLE_DEVICES": ""}  # several processes run at once
        with self.log.open("a") if self.log else nullcontext() as log:
            print(f"\n== {title}", file=log, flush=True)
            environment = {"OMP_NUM_THREADS": "1", **os.environ, **quiet}
            done = subprocess.run([sys.executable, *words], env=environment, stdout=log, stderr=log)
        if done.returncode:
            raise SystemExit(done.returncode)


def script(name: str) -> str:
    return str(ROOT / "scripts" / f"{name}.py")


def sentence(base: Curve, uptrained: Curve, control: Curve) -> str:
    """One sentence on the curves at the highest rate that leaves enough tokens to answer."""
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
