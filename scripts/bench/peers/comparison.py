"""The comparison with other frameworks: every framework in every mode, round by round, one process at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from data.progress import progress_bar
from scripts.bench.peers import environments, figures
from scripts.bench.peers.frameworks import BATCH_SIZES, OURS, PACKED, PEERS, Framework, Job
from scripts.bench.processes import reason, run_limited
from scripts.bench.records import fingerprint, read_json, write_json
from scripts.bench.timing import ROOT
from scripts.bench.training_data import prepare
from train.ranges import names, number

HOOK = Path(__file__).parent / "hook"
CODE = ("scripts/bench/peers", "train", "evs", "data", "configs")
LIMIT = 900  # seconds of one process


@dataclass
class Options:
    peers: list[str] = names(list(PEERS), *PEERS)  # frameworks to compare with
    modes: list[str] = names(list(BATCH_SIZES), *BATCH_SIZES)  # how rows are batched
    precision: str = names("bf16", "bf16", "fp32")  # of forward and backward passes; weights are float32
    rounds: int = number(2, least=1)  # processes per framework and mode; figures are medians over them
    samples: int = number(10, least=1)  # timed in a process, after two steps of warm-up
    folder: str = "runs/peers"  # environments, model, clips and records; a later call uses them again
    out: str | None = None  # JSON file for the figures


def compare(options: Options) -> dict[str, Any]:
    """Rows by mode and framework: its `rounds`, or the `reason` why there are none; and `checks`, one line for every
    difference between the batches of a peer and ours."""
    folder = Path(options.folder).resolve()
    peers = [PEERS[name] for name in options.peers]
    frameworks = [*OURS, *(row for peer in peers for row in (peer, peer.with_pruning()))]
    modes: dict[str, dict[str, Any]] = {
        mode: {framework.name: {"rounds": []} for framework in frameworks} for mode in options.modes
    }
    batches: dict[tuple[str, str], list[dict[str, Any]]] = {}
    plan = list(order(frameworks, options.modes, options.rounds))
    for turn, mode, framework in progress_bar(plan, desc="peers", unit="process"):
        row = modes[mode][framework.name]
        try:
            record = "reason" not in row and measure(framework, mode, turn, folder, options)
        except ValueError as error:
            row["reason"] = str(error)
            continue
        if record:
            row["rounds"].append(figures.summary(record))
            row["versions"] = record["versions"]
            batches.setdefault((mode, framework.name), record["batches"])
    checks = list(_checks(batches))
    for mode, rows in modes.items():
        print(f"{mode}:\n", figures.table(rows), "", *figures.savings(rows), "", sep="\n")
    print(*checks, sep="\n")
    return {"modes": modes, "checks": checks}


def order(frameworks: Sequence[Framework], modes: Sequence[str], rounds: int) -> Iterator[tuple[int, str, Framework]]:
    """(round, mode, framework); every second round runs in reverse order."""
    for turn in range(rounds):
        for mode in modes:
            yield from ((turn, mode, framework) for framework in frameworks[:: -1 if turn % 2 else 1])


def measure(framework: Framework, mode: str, turn: int, folder: Path, options: Options) -> dict[str, Any]:
    """What the hook recorded in one process; an earlier record is used again if it was made by the same code with the
    same settings. ValueError says in one line why there is no record."""
    if mode == PACKED and not framework.packs:
        raise ValueError("packs text alone, no videos")
    environment, cpu = folder / "environments" / "".join(framework.requires[:1]), not torch.cuda.is_available()
    job = Job(
        mode=mode,
        steps=figures.WARMUP - options.samples // -BATCH_SIZES[mode],
        data=prepare(folder / "data"),
        attention="flash_attention_2" if not cpu and find_spec("flash_attn") else "sdpa",
        precision=options.precision,
        cpu=cpu,
        folder=folder / "records" / re.sub(r"\W+", "_", f"{framework.name} {mode} {turn}"),
        programs=environments.build(environment, framework.requires, framework.empty, framework.shared),
    )
    path, key = job.folder.with_suffix(".json"), repr((job, framework.requires, fingerprint(*CODE)))
    earlier = read_json(path)
    if earlier and earlier["key"] == key:
        return earlier
    record = run(framework, job) | {"key": key}
    write_json(path, record)
    return record


def run(framework: Framework, job: Job) -> dict[str, Any]:
    """What the hook recorded in a new process. ValueError with its last error if it ended without a record."""
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    record, log = job.folder / "record.json", job.folder / "log.txt"
    environment = {  # nothing is downloaded and no cache survives the process
        **{"PYTHONPATH": f"{HOOK}:{ROOT}", "PEERS_RECORD": str(record), "PEERS_STEPS": str(job.steps)},
        **{"PEERS_RATE": str(framework.rate), "PEERS_BEGAN": repr(time.time())},
        **{"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
        **{"HF_HOME": str(job.folder / "hf"), "MODELSCOPE_CACHE": str(job.folder / "ms")},
        "CUDA_VISIBLE_DEVICES": "" if job.cpu else os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
        **framework.environment,
    }
    if run_limited(framework.command(job), log, LIMIT, job.folder, environment) is None:
        raise ValueError(f"not done with {job.steps} steps after {LIMIT} s")
    if not record.exists():
        raise ValueError(reason(log.read_text(errors="replace")))
    result = json.loads(record.read_text())
    shutil.rmtree(job.folder)
    return result


def _checks(batches: dict[tuple[str, str], list[dict[str, Any]]]) -> Iterator[str]:
    """The differences between the batches of each framework and ours, then the losses of each peer next to ours.

    Packed batches are not compared, because every framework chooses which rows it packs.
    """
    padded = {(mode, name): theirs for (mode, name), theirs in batches.items() if mode != PACKED}
    lines = [
        f"{mode}, {name}: {line}"
        for (mode, name), theirs in padded.items()
        for line in figures.differences(padded.get((mode, figures.REFERENCE), theirs), theirs)
    ]
    yield from lines or ["grids, video tokens and label tokens are equal in all batches"]
    for (mode, name), theirs in padded.items():
        reference = f"ours{figures.PRUNED}" if name.endswith(figures.PRUNED) else figures.REFERENCE
        if (mode, reference) in padded and not name.startswith("ours"):
            difference = figures.loss_difference(padded[mode, reference], theirs)
            yield f"{mode}, {name}: losses of {len(theirs)} batches within {difference:.1e} of {reference}"
