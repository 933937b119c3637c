"""All contenders in all modes, round by round; the records, the checks and the table."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from scripts.bench.peers import environments, figures, runs
from scripts.bench.peers.contenders import MODES, PEERS, RATES, Framework, Job, ours
from scripts.bench.peers.material import BenchmarkData, prepare
from train import cli
from train.metrics.machine import machine


@dataclass
class Options:
    peers: list[str] = field(default_factory=lambda: list(PEERS))
    modes: list[str] = field(default_factory=lambda: list(MODES))
    device: str | None = None  # cpu | cuda; null: cuda where there is one
    attention: str | None = None  # null: flash_attention_2 on a GPU where flash_attn is installed, else sdpa
    folder: str = "runs/peers"  # environments, model, clips and records, all of them used again
    rounds: int = 2
    samples: int = 10  # timed in a process, after two steps of warm-up
    workers: int = 1  # loaders' processes, for every contender
    threads: int | None = None  # null: one a core
    out: str | None = None  # JSON


@dataclass
class Comparison:
    """What is known so far: results[mode][name] holds the `rounds` done, or the `reason` why there are none."""

    options: Options
    material: BenchmarkData
    cpu: bool
    bins: dict[str, Path] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    batches: dict[tuple[str, str], Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)

    def build(self, contenders: list[Framework]) -> None:
        """Every contender's environment; where one cannot be had, its rows say why."""
        self.results = {mode: {each.name: {"rounds": []} for each in contenders} for mode in self.options.modes}
        for each in contenders:
            folder = Path(self.options.folder).resolve() / "environments" / each.name
            try:
                self.bins[each.name] = environments.build(folder, each.requires, each.empty)
            except ValueError as error:
                for rows in self.results.values():
                    rows[each.name]["reason"] = str(error)

    def run(self, contenders: list[Framework]) -> None:
        """All rounds of all modes."""
        plan, begin = list(schedule(contenders, self.options.modes, self.options.rounds)), time.monotonic()
        for place, (turn, mode, contender) in enumerate(plan):
            figure = self._one(contender, mode, turn)
            left = (time.monotonic() - begin) / (place + 1) * (len(plan) - place - 1)
            done = f"[{place + 1}/{len(plan)}] round {turn + 1}, {mode}, {contender.name}"
            print(f"{done}: {figure}; {left / 60:.0f} min left", flush=True)

    def _one(self, contender: Framework, mode: str, turn: int) -> str:
        """Runs one process and notes its figures; says how it ended."""
        row = self.results[mode][contender.name]
        if mode in contender.lacks:
            row["reason"] = contender.lacks[mode]
        if "reason" in row:
            return row["reason"]
        try:
            record = runs.record(contender, self._job(contender, mode, turn), self._settings())
        except runs.Failed as error:
            row["reason"] = str(error)
            return row["reason"]
        row["rounds"].append(figures.summary(record))
        self.versions[contender.name] = record["versions"]
        self.batches.setdefault((mode, contender.name), record["batches"])
        return f"{row['rounds'][-1]['samples_per_s']:.2f} samples/s"

    def _job(self, contender: Framework, mode: str, turn: int) -> Job:
        name = re.sub(r"\W+", "_", f"{contender.name} {mode} {turn}")
        root = Path(self.options.folder).resolve()
        timed = -(-self.options.samples // (1 if mode == "batch 1" else 2))
        options, steps = self.options, figures.WARMUP + timed
        return Job(
            *(mode, steps, self.material, attention(options, self.cpu), options.workers, self.cpu),
            *(root / "records" / name, self.bins[contender.name]),
        )

    def _settings(self) -> runs.Settings:
        return runs.Settings(self.options.threads or os.cpu_count() or 1, self.cpu)

    def check(self) -> list[str]:
        """One line for every difference between the batches of another framework and ours."""
        lines = []
        for (mode, name), theirs in self.batches.items():
            mine = self.batches.get((mode, figures.REFERENCE))
            unequal = figures.differences(mine, theirs) if mine and mode != "packed" else figures.incoherent(theirs)
            lines += [f"{mode}, {name}: {line}" for line in unequal]
        return lines


def schedule(contenders: list[Framework], modes: list[str], rounds: int) -> Iterator[tuple[int, str, Framework]]:
    """(round, mode, contender), every second round in the opposite order."""
    for turn in range(rounds):
        for mode in modes:
            yield from ((turn, mode, each) for each in (contenders if turn % 2 == 0 else contenders[::-1]))


def attention(options: Options, cpu: bool) -> str:
    flash = not cpu and find_spec("flash_attn") is not None
    return options.attention or ("flash_attention_2" if flash else "sdpa")


def check(options: Options) -> None:
    """Raise ValueError for what is wrong in the options."""
    for key, known in (("peers", list(PEERS)), ("modes", list(MODES))):
        for name in getattr(options, key):
            if name not in known:
                raise ValueError(f"{key} holds {name!r}, which is unknown{cli.suggest(name, known)}")
    if options.device not in (None, "cpu", "cuda"):
        raise ValueError(f"device={options.device} is unknown: use cpu or cuda")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda needs a GPU that torch sees, and there is none: use device=cpu")
    for key in ("rounds", "samples"):
        if getattr(options, key) < 1:
            raise ValueError(f"{key}={getattr(options, key)} must be at least 1")


def main(options: Options) -> None:
    """The whole benchmark."""
    check(options)
    cpu = options.device == "cpu" or not torch.cuda.is_available()
    race = Comparison(options, prepare(Path(options.folder).resolve() / "material"), cpu)
    contenders = [ours(name) for name in RATES] + [PEERS[name] for name in options.peers]
    race.build(contenders)
    race.run(contenders)
    checks = race.check() or ["grids, video tokens and label tokens are equal in all batches"]
    behind = figures.behind(race.results, list(RATES)) or ["ours at rate 0 is ahead in every mode"]
    tables = "\n\n".join(f"{mode}:\n\n{figures.table(rows)}" for mode, rows in race.results.items())
    print(f"\n{tables}\n", *checks, *behind, sep="\n")
    about = {"what": "peers", "machine": machine(), "options": asdict(options), "versions": race.versions}
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text(json.dumps(about | {"checks": checks, "result": race.results}, indent=1) + "\n")
        print(f"figures: {options.out}")
