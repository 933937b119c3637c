"""Records metrics by name during steps, reduces them over ranks, and writes them to the sinks."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import OmegaConf
from torch import Tensor

from data.progress import progress_bar
from data.types import Quarantined
from train.collectives import collected, on_main
from train.config import Config
from train.distributed import ONE_PROCESS, Mesh
from train.faults.full_disk import writing
from train.jsonl import append_lines, append_new_lines, cut_back
from train.metrics.machine import machine
from train.metrics.sinks import Console, Jsonl, Sink, start_tensorboard, start_wandb


@dataclass
class Recorder:
    """Collects values between two reports. Ranks must record the same names between reports, in any order."""

    engine: Accelerator
    run_dir: Path
    sinks: list[Sink]
    list_batches: bool = False
    mesh: Mesh = ONE_PROCESS  # of ranks that share a batch, the leading one counts
    _batches: list[dict[str, Any]] = field(default_factory=list)
    _mean: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)
    _sum: dict[str, list[Any]] = field(default_factory=dict)

    def record(self, name: str, value: Tensor | float, weight: Tensor | float | None = None) -> None:
        """Add a value to the next report: a mean over micro-batches and ranks with `weight`, a sum without."""
        if weight is None:
            self._sum.setdefault(name, []).append(value)
        else:
            self._mean.setdefault(name, []).append((value, weight))

    def quarantine(self, samples: Sequence[Quarantined], step: int | None = None) -> None:
        """Count samples that this rank skipped in a step, and list each with its reason in `quarantine.jsonl`."""
        self.record("quarantined", len(samples))
        if self.mesh.leads:
            append_lines(self.run_dir / "quarantine.jsonl", _rows(samples, step))

    def quarantine_once(self, samples: Sequence[Quarantined], step: int) -> int:
        """List samples that all ranks have quarantined, unless already listed. Returns the number of new ones."""
        return (
            append_new_lines(self.run_dir / "quarantine.jsonl", _rows(samples, step))
            if self.engine.is_main_process
            else 0
        )

    def batch(self, step: int, index: int, rates: Sequence[Any], samples: Sequence[str]) -> None:
        """List the rates and samples of a micro-batch in `batches.jsonl`, if enabled by `tracker.batches`."""
        if self.list_batches:
            self._batches.append({"step": step, "place": index, "rates": rates, "samples": list(samples)})

    def _write_batches(self) -> None:
        rows = collected(self._batches if self.mesh.leads else [])
        if self.engine.is_main_process:
            append_lines(self.run_dir / "batches.jsonl", sorted(rows, key=lambda row: (row["step"], row["place"])))
        self._batches.clear()

    def report(
        self, step: int, shares: Mapping[str, tuple[str, float]] | None = None, **local: float
    ) -> dict[str, float]:
        """Reduce the recorded values over ranks, write them to the sinks and clear them. Every rank must call it.

        `local` values are written as they are, without a reduction. `shares` maps a new name to (recorded name,
        divisor): the reduced value divided by the divisor is reported too.
        """
        values = self._reduce() | local
        values |= {name: values[key] / divisor for name, (key, divisor) in (shares or {}).items() if key in values}
        self._mean.clear()
        self._sum.clear()
        on_main(self.engine, lambda: self._write(step, values))
        if self.list_batches:
            self._write_batches()
        return values

    def _write(self, step: int, values: dict[str, float]) -> None:
        for sink in self.sinks:
            sink.write(step, values)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()

    def _reduce(self) -> dict[str, float]:
        means, sums = sorted(self._mean), sorted(self._sum)
        rows = [total(self._sum[name]) for name in sums]
        rows += [total([value * weight for value, weight in self._mean[name]]) for name in means]
        rows += [total([weight for _, weight in self._mean[name]]) for name in means]
        if not rows:
            return {}
        flat = torch.stack([row.to(self.engine.device) for row in rows])
        flat = self.engine.reduce(flat if self.mesh.leads else flat.zero_(), reduction="sum").tolist()
        n, m = len(sums), len(means)
        mean = {name: flat[n + i] / flat[n + m + i] for i, name in enumerate(means) if flat[n + m + i]}
        return dict(zip(sums, flat)) | mean


def _rows(samples: Sequence[Quarantined], step: int | None) -> list[dict[str, Any]]:
    return [({} if step is None else {"step": step}) | asdict(sample) for sample in samples]


def total(values: list[Any]) -> Tensor:
    """The float64 sum of numbers and tensors, without synchronizing the device."""
    tensors = [torch.as_tensor(value).detach().double() for value in values]
    device = next((t.device for t in tensors if t.device.type != "cpu"), torch.device("cpu"))
    return torch.stack([t.to(device, non_blocking=True) for t in tensors]).sum()


def build_recorder(engine: Accelerator, config: Config, first_step: int, mesh: Mesh) -> Recorder:
    """A recorder on every rank, whose sinks are on rank 0. Write the run's `config.yaml` and `machine.json`.

    Raise ValueError on all ranks, naming the file, if rank 0 cannot write.
    """
    sinks = on_main(engine, lambda: _open_sinks(config, first_step, engine.num_processes))
    return Recorder(engine, Path(config.run_dir), sinks or [], config.tracker.batches, mesh)


def _open_sinks(config: Config, first_step: int, ranks: int) -> list[Sink]:
    run_dir = Path(config.run_dir)
    record = machine() | {"ranks": ranks, "command": shlex.join(["python", *sys.argv])}
    with writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.structured(config), run_dir / "config.yaml")
        (run_dir / "machine.json").write_text(json.dumps(record, indent=1) + "\n")
        for name in ("metrics.jsonl", "batches.jsonl", "health.jsonl", "quarantine.jsonl"):
            cut_back(run_dir / name, first_step or -1)  # without a checkpoint, step 0 is repeated too
    bar = progress_bar(total=config.train.steps, initial=first_step, desc="train", unit="step")
    sinks: list[Sink] = [Console(bar), Jsonl(run_dir / "metrics.jsonl")]
    if config.tracker.tensorboard:
        sinks.append(start_tensorboard(run_dir, first_step))
    if config.tracker.wandb:
        sinks.append(start_wandb(config.tracker, run_dir, asdict(config)))
    return sinks


RATE_BUCKETS = ("0.0-0.3", "0.3-0.6", "0.6-0.9", "0.9-1.0")


def rate_bucket(rate: float) -> str:
    """The bucket that a rate falls in, as in the metric `loss/rate_0.3-0.6`."""
    return RATE_BUCKETS[min(int(rate / 0.3 + 1e-9), 3)]
