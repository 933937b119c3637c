"""Two rank processes that run one command after another, since each start imports libraries for ten seconds.

`torchrun -m tests.ranks FOLDER` runs in every rank. Job N is `FOLDER/N.json`, the name of a command and its words, and
its outcome `FOLDER/N.RANK`, empty or the traceback. What it prints is in `FOLDER/N.printed.RANK`.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stdout
from pathlib import Path

from train import cli

ROOT = Path(__file__).parents[1]


class Ranks:
    """Starts the processes with the first job, and again after one that failed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, 0
        self.process: subprocess.Popen[bytes] | None = None

    def train(self, *words: str) -> None:
        """Train as `torchrun --nproc-per-node 2 train/run.py WORDS` does. AssertionError if it fails."""
        self.run("train", *words)

    def run(self, command: str, *words: str, timeout: float = 600) -> str:
        """What the first rank prints of `train` or of a command of scripts/. AssertionError if it fails."""
        if self.process is None:
            self.process = self._start()
        self.jobs += 1
        job = self.folder / f"{self.jobs}.json"
        job.with_suffix(".new").write_text(json.dumps([command, *words]))
        job.with_suffix(".new").replace(job)
        outcomes, until = [job.with_suffix(f".{rank}") for rank in range(2)], time.monotonic() + timeout
        while not all(path.exists() for path in outcomes):
            failed = next((text for path in outcomes if path.exists() and (text := path.read_text())), "")
            if failed or self.process.poll() is not None or time.monotonic() > until:
                self.close()
                raise AssertionError(
                    failed or f"the ranks ended or took longer than {timeout} s; see {self.folder}/log"
                )
            time.sleep(0.05)
        if failed := "".join(path.read_text() for path in outcomes):
            self.close()
            raise AssertionError(failed)
        return job.with_suffix(".printed.0").read_text()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *cli.launcher(2), "-m", "tests.ranks", str(self.folder), str(self.jobs)],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
            )


def main(folder: Path, done: int) -> None:
    """Run every job that appears in the folder, until the parent ends."""
    from train import distributed

    distributed.join()
    parent, rank = os.getppid(), os.environ["RANK"]
    for number in range(done + 1, sys.maxsize):
        job = folder / f"{number}.json"
        while not job.exists():
            if os.getppid() != parent:
                return
            time.sleep(0.05)
        try:
            with job.with_suffix(f".printed.{rank}").open("w") as out, redirect_stdout(out):
                run(*json.loads(job.read_text()))
            failed = ""
        except BaseException:
            failed = traceback.format_exc()
        outcome = job.with_suffix(f".{rank}")
        outcome.with_suffix(f"{outcome.suffix}.new").write_text(failed)
        outcome.with_suffix(f"{outcome.suffix}.new").replace(outcome)


def run(command: str, *words: str) -> None:
    from accelerate.state import AcceleratorState

    from tests.runs import trained

    if command == "train":
        trained(*words)
        return
    AcceleratorState._reset_state(reset_partial_state=True)  # the engine of an earlier job
    module = importlib.import_module(f"scripts.{command}")
    cli.run(module.main, module.Options, list(words))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
