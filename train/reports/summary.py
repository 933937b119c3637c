"""A summary of a run, read from its files: printed at its end and written to `summary.json`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from train import cli
from train.checkpoint.checkpoint import complete
from train.faults.full_disk import writing
from train.jsonl import read_lines
from train.quarantine import normalized_reason


@dataclass(frozen=True)
class Summary:
    """Sums over all parts of a run that was interrupted and resumed."""

    steps: int
    samples: int
    hours: float  # of training, without evaluation and saving
    samples_per_s: float
    tokens_before: int
    tokens_after: int
    rate: float  # mean of the drawn rates
    peak_memory_gib: float | None  # of the main rank
    forecast_gib: float | None  # by the preflight
    own_settings: dict[str, int]  # rows that set frames or pixels of their videos themselves, by configuration key
    resized: int  # samples that decoded to another number of tokens than predicted from their headers
    quarantined: dict[str, int]  # by reason
    checkpoint: str | None


def summarize(run_dir: Path, forecast_gib: float | None = None, own_settings: dict[str, int] | None = None) -> Summary:
    """The summary of a run folder; `forecast_gib` and `own_settings` are not in its files.

    Raises ValueError if `run_dir` holds no metrics of a training step, or metrics that no run writes.
    """
    try:
        return _summary(run_dir, forecast_gib, own_settings or {})
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"{run_dir}/metrics.jsonl: not what a run writes ({error!r}); correct the file") from None


def _summary(run_dir: Path, forecast_gib: float | None, own_settings: dict[str, int]) -> Summary:
    rows = [row for row in read_lines(run_dir / "metrics.jsonl") if "samples" in row]
    if not rows:
        raise ValueError(f"{run_dir} holds no metrics of a training step: give the run_dir of a training run")
    samples = sum(row["samples"] for row in rows)
    seconds = sum(row["samples"] / row["samples_per_s"] for row in rows if row["samples"])
    lengths = [row["step"] - before for row, before in zip(rows, [0, *(row["step"] for row in rows)])]
    checkpoints = complete(run_dir / "checkpoints")
    peaks = [row["peak_memory_gib"] for row in rows if "peak_memory_gib" in row]
    return Summary(
        steps=rows[-1]["step"],
        samples=int(samples),
        hours=seconds / 3600,
        samples_per_s=samples / seconds if seconds else 0.0,
        tokens_before=int(sum(row["tokens/before"] for row in rows)),
        tokens_after=int(sum(row["tokens/after"] for row in rows)),
        rate=sum(row["rate"] * length for row, length in zip(rows, lengths)) / max(1, sum(lengths)),
        peak_memory_gib=max(peaks) if peaks else None,
        forecast_gib=forecast_gib,
        own_settings=own_settings,
        resized=int(sum(row.get("resized", 0) for row in rows)),
        quarantined=by_reason(run_dir),
        checkpoint=str(checkpoints[-1]) if checkpoints else None,
    )


def by_reason(run_dir: Path) -> dict[str, int]:
    """Quarantined samples of a run by reason, without names and numbers, most common first."""
    # By id, because a resumed run may record a sample again.
    reasons = {row["id"]: row["reason"] for row in read_lines(run_dir / "quarantine.jsonl")}
    return dict(Counter(map(normalized_reason, reasons.values())).most_common())


def write(summary: Summary, run_dir: Path) -> None:
    path = run_dir / "summary.json"
    with writing(path):
        path.write_text(json.dumps(asdict(summary), indent=1) + "\n")


def text(summary: Summary, run_dir: Path) -> str:
    """The summary in words; the last line is the command that exports the checkpoint."""
    kept = summary.tokens_after / max(1, summary.tokens_before)
    lines = [
        f"run: {run_dir}",
        f"steps {summary.steps}, samples {summary.samples:,} in {summary.hours:.2f} h ({summary.samples_per_s:.3g}/s)",
        f"tokens {summary.tokens_before:,} before pruning, {summary.tokens_after:,} after ({kept:.0%}); "
        f"mean rate {summary.rate:.3f}",
    ]
    if summary.peak_memory_gib is not None:
        forecast = f" (forecast {summary.forecast_gib:.2f})" if summary.forecast_gib is not None else ""
        lines.append(f"peak memory {summary.peak_memory_gib:.2f} GiB a rank{forecast}")
    lines += [f"{key}: {count} rows set frames or pixels" for key, count in summary.own_settings.items() if count]
    if summary.resized:
        lines.append(
            f"samples that decoded to another number of tokens than predicted from their headers: {summary.resized}"
        )
    lines += [f"quarantined {count}: {reason}" for reason, count in summary.quarantined.items()]
    if summary.checkpoint:
        lines.append(f"checkpoint: {summary.checkpoint}")
        lines.append(f"export: {cli.command('export', f'run={run_dir}', f'out={run_dir}-checkpoint')}")
    return "\n".join(lines)
