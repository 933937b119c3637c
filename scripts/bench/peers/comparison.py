"""The comparison with other frameworks: every framework in every mode, round by round, one process at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data.progress import progress_bar
from scripts.bench.peers import figures
from scripts.bench.peers.checkpoint_serving import compare_with_vllm
from scripts.bench.peers.figures import PRUNED, REFERENCE, UNIFORM
from scripts.bench.peers.frameworks import BATCH_SIZES, OURS, PACKED, PEERS, Framework, Job
from scripts.bench.peers.jobs import job_of, run_or_reuse, run_to_end
from scripts.bench.processes import reason
from scripts.bench.timing import ROOT
from train.ranges import names, number

HOOK = Path(__file__).parent / "hook"


@dataclass
class Options:
    peers: list[str] = names(list(PEERS), *PEERS)  # frameworks to compare with
    modes: list[str] = names(list(BATCH_SIZES), *BATCH_SIZES)  # how rows are batched
    precision: str = names("bf16", "bf16", "fp32")  # of forward and backward passes; weights are float32
    rounds: int = number(2, least=1)  # processes per framework and mode; figures are medians over them
    samples: int = number(10, least=1)  # timed in a process, after two steps of warm-up
    folder: str = "runs/peers"  # environments, model, clips and records; a later call uses them again
    # Python of an environment with vLLM and this package: also train on U(0, .9), and let vLLM serve the checkpoints
    vllm_python: str = ""
    out: str | None = None  # JSON file for the figures


def compare(options: Options) -> dict[str, Any]:
    """Rows by mode and framework: its `rounds`, or the `reason` why there are none; `checks`, one line for every
    difference between the batches of a peer and ours; and `served`, what `serve` returns."""
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
    result = {"modes": modes, "checks": list(_checks(batches)), "served": serve(peers, folder, options)}
    _print(result)
    return result


def order(frameworks: Sequence[Framework], modes: Sequence[str], rounds: int) -> Iterator[tuple[int, str, Framework]]:
    """(round, mode, framework); every second round runs in reverse order."""
    for turn in range(rounds):
        for mode in modes:
            yield from ((turn, mode, framework) for framework in frameworks[:: -1 if turn % 2 else 1])


def measure(framework: Framework, mode: str, turn: int, folder: Path, options: Options) -> dict[str, Any]:
    """Measure one process and return its record. Raise ValueError with the reason if there is none."""
    if mode == PACKED and not framework.packs:
        raise ValueError("packs text alone, no videos")
    job = job_of(framework, mode, turn, folder, samples=options.samples, precision=options.precision)
    return run_or_reuse(framework, job, lambda: run(framework, job))


def run(framework: Framework, job: Job) -> dict[str, Any]:
    """What the hook recorded in a new process. ValueError with its last error if it ended without a record."""
    record = job.folder / "record.json"
    hook = {"PYTHONPATH": f"{HOOK}:{ROOT}", "PEERS_RECORD": str(record), "PEERS_STEPS": str(job.steps)}
    log = run_to_end(framework, job, hook)
    if not record.exists():
        raise ValueError(reason(log))
    result = json.loads(record.read_text())
    shutil.rmtree(job.folder)
    return result


def serve(peers: Sequence[Framework], folder: Path, options: Options) -> dict[str, Any]:
    """By peer: how a real vLLM serves its checkpoint, or the `reason` why it does not."""
    rows: dict[str, Any] = {}
    for peer in peers if options.vllm_python else ():
        framework = peer.with_pruning(UNIFORM)
        try:
            job = job_of(framework, "batch 1", 0, folder, samples=options.samples, precision=options.precision)
            check = partial(compare_with_vllm, framework, job, options.vllm_python)
            rows[framework.name] = run_or_reuse(framework, job, check, options.vllm_python)
        except ValueError as error:
            rows[framework.name] = {"reason": str(error)}
    return rows


def _print(result: dict[str, Any]) -> None:
    for mode, rows in result["modes"].items():
        print(f"{mode}:\n", figures.table(rows), "", sep="\n")
    print(*result["checks"], sep="\n")
    for name, row in result["served"].items():
        print(name, row.get("reason") or f"vLLM answers {len(row['cells'])} prompts as the trained model", sep=": ")


def _checks(batches: dict[tuple[str, str], list[dict[str, Any]]]) -> Iterator[str]:
    """The differences between the batches of each framework and ours, then the losses of each peer next to ours.

    Packed batches are not compared, because every framework chooses which rows it packs.
    """
    padded = {(mode, name): theirs for (mode, name), theirs in batches.items() if mode != PACKED}
    lines = [
        f"{mode}, {name}: {line}"
        for (mode, name), theirs in padded.items()
        for line in figures.differences(padded.get((mode, REFERENCE), theirs), theirs)
    ]
    yield from lines or ["grids, video tokens and label tokens are equal in all batches"] * bool(padded)
    for (mode, name), theirs in padded.items():
        reference = f"ours{PRUNED}" if name.endswith(PRUNED) else REFERENCE
        if (mode, reference) in padded and not name.startswith("ours"):
            difference = figures.loss_difference(padded[mode, reference], theirs)
            yield f"{mode}, {name}: losses of {len(theirs)} batches within {difference:.1e} of {reference}"
