"""page.md: the results of all jobs as Markdown tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.bench.gpu.jobs import Job
from scripts.bench.models import PLACES
from scripts.bench.peers import figures
from scripts.bench.records import is_done, read_record
from train.reports.markdown import markdown_table

Records = dict[str, dict[str, Any]]  # of one part's finished jobs, by name
SPANS = ("vision", "language_model", "head", "backward", "optimizer")


def write_page(folder: Path, planned: Sequence[Job]) -> None:
    """Write page.md in `folder` from the JSONs of the jobs there."""
    records = {job: read_record(folder / f"{job.name}.json") for job in planned}
    lines = ["# GPU benchmark", "", *_machines([record for record in records.values() if record])]
    for part, (title, text) in SECTIONS.items():
        done = {job.name: record for job, record in records.items() if record and is_done(record) and job.part == part}
        if done:
            lines += ["", f"## {title}", "", *text(done)]
    missing = [(job.name, *_state(record)) for job, record in records.items() if not is_done(record)]
    if missing:
        lines += ["", "## Not measured", "", *_table(("job", "state", "reason"), missing)]
    (folder / "page.md").write_text("\n".join(lines) + "\n")


def _state(record: Any) -> tuple[str, str]:
    return (record["status"], record["reason"]) if record else ("not run yet", "")


def _machines(records: Sequence[Any]) -> list[str]:
    """One line for every machine and commit with results."""
    counted = Counter(json.dumps(record["machine"]) for record in records)
    lines = []
    for text, count in counted.items():
        machine = json.loads(text)
        versions = (
            f"torch {machine['torch']}, transformers {machine['transformers']}, commit {machine['commit'] or 'unknown'}"
        )
        lines.append(f"{count} jobs on {machine['device']}: {versions}.")
    return lines


def _table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> list[str]:
    return markdown_table(header, rows).splitlines()


def _step(records: Records) -> list[str]:
    """Forward and backward; shares are of a whole step with its update."""
    first = ("shape", "tower", "attention", "pruned", "rate", "seconds", "over ideal", "MFU", "of the language model")
    spans = [name.replace("_", " ") for name in SPANS]
    header = (*first, "tokens/s", *spans, "peak GiB", "forecast / peak")
    return _table(header, [row for record in records.values() for row in _step_rows(record)])


def _step_rows(record: dict[str, Any]) -> Iterator[list[str]]:
    options = record["options"]
    attention = options["attention"] + (", compiled" if options["compile"] else "")
    for tower, result in record["result"].items():
        for place in PLACES:
            for rate, row in result[place].items():
                step_seconds, peak = sum(row["spans_s"].values()), row["peak_gib"]
                yield [
                    *(options["shape"], tower, attention, f"{place} the tower", rate),
                    *(f"{row['seconds']:.3f}", f"{row['over_ideal']:.2f}"),
                    *(_percent(row["mfu"]), _percent(row["language_mfu"]), f"{row['tokens_per_s']:.0f}"),
                    *(_percent(row["spans_s"][name] / step_seconds) for name in SPANS),
                    *(("", "") if not peak else (f"{peak:.2f}", f"{row['forecast_gib'] / peak:.2f}")),
                ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _prefill(records: Records) -> list[str]:
    """Seconds to the first token of one clip."""
    rows = []
    for record in records.values():
        options, result = record["options"], record["result"]
        full = result["tower"]["seconds"]
        for rate in options["rates"]:
            language = result[f"language {rate:g}"]["seconds"]
            kept = result[f"tower {rate:g}"]["seconds"] if rate else full
            seconds = (language, full, language + full, kept, language + kept)
            rows.append((options["shape"], options["tokens"], f"{rate:g}", *(f"{value:.3f}" for value in seconds)))
    header = ("shape", "video tokens", "rate", "language model", "tower", "first token, pruned after the tower")
    return _table((*header, "tower on kept tokens", "first token, pruned before the tower"), rows)


def _train(records: Records) -> list[str]:
    rows = []
    for record in records.values():
        run, options = record["result"], record["options"]
        halves = " + ".join(f"{seconds:.0f}" for seconds in run["wall_s"])
        cells = (options["shape"], run["steps"], run["resumed_at"], options["workers"], f"{run['samples_per_s']:.2f}")
        rows.append((*cells, f"{run['seconds']['step']:.3f}", _percent(run["wait_share"]), halves))
    header = ("shape", "steps", "resumed at", "workers", "samples/s", "seconds a step", "waits for the loader")
    return _table((*header, "seconds of both processes"), rows)


def _profile(records: Records) -> list[str]:
    lines: list[str] = []
    for name, record in records.items():
        result = record["result"]
        rows = [
            (r["name"][:80], r["calls"], f"{1000 * r['seconds']:.2f}", _percent(r["share"]))
            for r in result["operations"]
        ]
        lines += [f"{name}:", "", *_table(("operation", "calls", "ms", "share"), rows), ""]
        if result["synchronizations"] is not None:
            lines += [f"Synchronizations within the step: {result['synchronizations']}.", ""]
            lines += [*_table(("at", "times"), list(result["synchronized_at"].items())), ""]
    return lines[:-1]


def _serving(records: Records) -> list[str]:
    """Answered requests of every server under every load."""
    names = ("requests_per_s", "first_token_median_s", "first_token_p99_s", "prompt_tokens_per_s")
    header = ("shape", "server", "files", "clients", *(name.replace("_", " ") for name in names), "failures")
    rows = [
        (record["options"]["shape"], server.partition(",")[0], got["load"]["files"], got["load"]["clients"])
        + (*(f"{got[name]:.2f}" for name in names), sum(got["failures"].values()))
        for record in records.values()
        for server, got in record["result"].items()
    ]
    return _table(header, rows)


def _peers(records: Records) -> list[str]:
    return [
        line
        for record in records.values()
        for mode, rows in record["result"]["modes"].items()
        for line in (f"{mode}:", "", figures.table(rows), "")
    ][:-1]


def _tests(records: Records) -> list[str]:
    rows = [
        (
            name,
            *(record["result"][state] for state in ("passed", "failed", "skipped")),
            ", ".join(record["result"]["failures"]),
        )
        for name, record in records.items()
    ]
    return _table(("job", "passed", "failed", "skipped", "failures"), rows)


SECTIONS: dict[str, tuple[str, Callable[[Records], list[str]]]] = {
    "tests": ("GPU tests", _tests),
    "step": ("Training step: seconds of forward and backward; shares and peak of a whole step", _step),
    "prefill": ("Prefill of one clip, seconds", _prefill),
    "peers": ("Other frameworks", _peers),
    "train": ("A training run", _train),
    "serving": ("Serving", _serving),
    "profile": ("Profile of a step at rate 0.75", _profile),
}
