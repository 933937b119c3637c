"""The runs of a study through the project's commands: base, uptraining, export, evaluation. Unfinished ones are
repeated."""

from __future__ import annotations

import atexit
import json
import os
import runpy
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from scripts.recipes.table import BASE, SERVED, TRANSFER_RATES
from train import cli

ROOT = Path(__file__).resolve().parents[2]
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
# Scripts run in forks of a process that has imported these: imports take as long as half a run of the quick preset.
IMPORTED = ["train.run", "train.build", "train.loop", "scripts.evaluate", "scripts.export"]
FORKS = get_context("forkserver")


@dataclass(frozen=True)
class Seed:
    """The folder of one seed: the random model that its base starts from, the base, and a folder for each recipe."""

    folder: Path
    number: int
    videos: Path  # folder of train/ and held_out/

    @property
    def train(self) -> Path:
        return self.videos / "train" / "data.jsonl"

    def mixture(self, stills: float, reduced: str | None) -> str:
        """The value of data.train: the videos, as they are or reduced, with a share of images and text."""
        videos = self.train if reduced is None else self.train.with_name(f"{reduced}.jsonl")
        paths = {"videos": (videos, 1 - stills), "stills": (self.train.with_name("stills.jsonl"), stills)}
        entries = [
            f"{name}:{{path:{json.dumps(str(path))},weight:{weight:g}}}"
            for name, (path, weight) in paths.items()
            if weight
        ]
        return f"data.train={{{','.join(entries)}}}"

    @property
    def held_out(self) -> Path:
        return self.videos / "held_out" / "data.jsonl"

    @property
    def random(self) -> Path:
        return self.folder / "random"

    def checkpoint(self, name: str) -> Path:
        return self.folder / name / "checkpoint"

    def result(self, name: str, served: str | None = None) -> Path:
        """Scores of a model, under the method that it was trained for or under one of SERVED."""
        return self.folder / name / ("result.json" if served is None else f"served_{served}.json")


@dataclass(frozen=True)
class Job:
    """One model of one seed, trained with the arguments `words` and evaluated at `rates`."""

    seed: Seed
    name: str
    words: tuple[str, ...]
    rates: tuple[float, ...]
    stills: float
    served: str | None = None  # method of the evaluation, if it is another
    reduced: str | None = None  # of data.encoding.reduction: the videos that it is trained on
    baselines: tuple[str, ...] = ()  # of data.encoding.reduction: evaluated as well
    transfer: tuple[str, ...] = ()  # of SERVED: evaluated under them as well

    @property
    def done(self) -> bool:
        """True if the result exists with all its baselines, which evaluate.py adds last."""
        path = self.seed.result(self.name)
        if not path.is_file():
            return False
        measured = {(one["baseline"], one["rate"]) for one in json.loads(path.read_text()).get("baselines", [])}
        return measured >= {(kind, rate) for kind in self.baselines for rate in self.rates if rate}

    def do(self, threads: int) -> None:
        """Run the steps that are not done yet. ValueError, with the last line of the log, if a command fails."""
        folder = self.seed.folder / self.name
        folder.mkdir(parents=True, exist_ok=True)
        start = self.seed.random if self.name == BASE else self.seed.checkpoint(BASE)
        paths = {"model.path": start, "run_dir": folder / "run"}
        data = self.seed.mixture(self.stills, self.reduced)
        shared = (*(cli.override(key, path) for key, path in paths.items()), data, f"seed={self.seed.number}")

        def command(script: str, *words: str) -> None:
            _python(folder / "log.txt", threads, script, *words)

        def export(out: Path) -> None:
            command("train/run.py", "+experiment=study", *shared, "resume=auto", *self.words)
            command("scripts/export.py", f"run={folder / 'run'}", f"out={out}")

        complete(self.seed.checkpoint(self.name), export)
        for served in self.transfer:
            evaluation = self._evaluation(TRANSFER_RATES, self.seed.result(self.name, served))
            command("scripts/evaluate.py", *evaluation, *SERVED[served])
        own = () if self.served is None else SERVED[self.served]
        evaluation = self._evaluation(self.rates, self.seed.result(self.name))
        command("scripts/evaluate.py", *evaluation, *own, f"baselines=[{','.join(self.baselines)}]")
        shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)

    def _evaluation(self, rates: tuple[float, ...], out: Path) -> tuple[str, ...]:
        """The arguments of an evaluation with the method of the training."""
        return (
            f"model={self.seed.checkpoint(self.name)}",
            f"data={self.seed.held_out}",
            f"rates=[{','.join(f'{rate:g}' for rate in rates)}]",
            f"out={out}",
            *(f"name={self.name}", "batch_size=20", "dtype=float32", "workers=0"),
        )


def complete(folder: Path, make: Callable[[Path], object]) -> Path:
    """`folder`, created by `make` under a temporary name, so that it exists only if it is complete."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        make(partial)
        partial.rename(folder)
    return folder


def do_all(jobs: Sequence[Job], parallel: int, threads: int | None) -> None:
    """Run the jobs, `parallel` at a time with `threads` each. Prints a line with the time left after each."""
    missing = [job for job in jobs if not job.done]
    if len(missing) < len(jobs):
        print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are done already", flush=True)
    workers = max(1, min(parallel, len(missing)))
    os.environ.update(QUIET)
    FORKS.set_forkserver_preload(IMPORTED)
    cores, begin = max(1, len(os.sched_getaffinity(0)) // workers), time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        ends = [(job, pool.submit(job.do, threads or cores)) for job in missing]
        for done, (job, end) in enumerate(ends, 1):
            try:
                end.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            minutes = (time.monotonic() - begin) / 60
            left = f"about {minutes / done * (len(missing) - done):.0f} minutes left of these"
            print(f"{job.seed.folder.name} {job.name}: done, {done} of {len(missing)}, {left}", flush=True)


def _python(log: Path, threads: int, script: str, *words: str) -> None:
    """Run one of the project's scripts, with its output appended to `log`."""
    process = FORKS.Process(target=_script, args=(log, threads, script, words))
    process.start()
    process.join()
    if process.exitcode:
        last = log.read_text().strip().splitlines()[-1]
        raise ValueError(
            f"{script} ended with status {process.exitcode} ({last}): see {log}, and run the same command to continue"
        )


def _script(log: Path, threads: int, script: str, words: Sequence[str]) -> None:
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(threads)
    sys.argv = [str(ROOT / script), *words]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:  # multiprocessing ends this process without them, and would wait for the workers that they kill
        atexit._run_exitfuncs()
