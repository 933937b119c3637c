"""Outputs of reported values: the console, a JSONL file, TensorBoard and W&B."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from train.config import TrackerConfig
from train.faults.first_line import first_line
from train.faults.full_disk import writing
from train.jsonl import append_lines, as_json
from train.reports.curve import Curve, curve_of, figure, table


class Sink(Protocol):
    """An output of reports."""

    def write(self, step: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Jsonl:
    """Appends one line per report; a resumed run appends to the same file."""

    path: Path

    def write(self, step: int, values: dict[str, float]) -> None:
        append_lines(self.path, [{"step": step, **as_json(values)}])

    def close(self) -> None: ...


@dataclass(frozen=True)
class Console:
    """The progress bar, with the remaining time and the most important values."""

    bar: tqdm
    shown: tuple[str, ...] = ("loss", "token_accuracy", "rate", "kept", "lr", "tokens_per_s")

    def write(self, step: int, values: dict[str, float]) -> None:
        shown = {name: f"{values[name]:.4g}" for name in self.shown if name in values}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(step - self.bar.n)

    def close(self) -> None:
        self.bar.close()


@dataclass(frozen=True)
class TensorBoard:
    """Event files in the run's folder. A resumed run hides the events of the steps that it repeats."""

    writer: Any
    folder: Path

    def write(self, step: int, values: dict[str, float]) -> None:
        with writing(self.folder):
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            if (curve := curve_of(f"step {step}", values)).accuracy:
                self.writer.add_figure("eval/curve", figure([curve], "Accuracy by pruning rate"), step)
                self.writer.add_text("eval/table", table([curve]), step)
            self.writer.flush()

    def close(self) -> None:
        with writing(self.folder):
            self.writer.close()


def start_tensorboard(run_dir: Path, first_step: int) -> TensorBoard:
    from torch.utils.tensorboard import SummaryWriter

    folder = run_dir / "tensorboard"
    threading.excepthook = _without_tensorboard(threading.excepthook)
    with writing(folder):
        return TensorBoard(SummaryWriter(folder, purge_step=first_step + 1 if first_step else None), folder)


def _without_tensorboard(report: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The hook `report` for all threads but TensorBoard's, which keeps its error and raises it at the next write."""
    return lambda args: None if type(args.thread).__module__.startswith("tensorboard") else report(args)


@dataclass
class Wandb:
    """Logs to Weights & Biases. After the first error, which is printed, the run continues without it."""

    run: Any

    def write(self, step: int, values: dict[str, float]) -> None:
        self._try(lambda: self.run.log({**values, **wandb_curve(curve_of(f"step {step}", values))}, step=step))

    def close(self) -> None:
        self._try(lambda: self.run.finish())

    def _try(self, function: Callable[[], Any]) -> None:
        try:
            if self.run is not None:
                function()
        except Exception as error:
            self.run = None
            print(f"W&B logging has stopped ({first_line(error)}); metrics.jsonl is still written", file=sys.stderr)


def start_wandb(config: TrackerConfig, run_dir: Path, settings: dict) -> Wandb:
    """A W&B run with files in the run's folder; offline without a key and a mode, or if the network fails."""
    key = os.environ.get("WANDB_API_KEY") or wandb_key()
    mode = os.environ.get("WANDB_MODE") or ("online" if key else "offline")
    for candidate in dict.fromkeys([mode, "offline"]):
        try:
            return Wandb(_wandb(config, run_dir, settings, candidate))
        except Exception as error:
            print(f"W&B did not start ({first_line(error)})", file=sys.stderr)
    return Wandb(None)


def _wandb(config: TrackerConfig, run_dir: Path, settings: dict, mode: Any) -> Any:
    import wandb

    return wandb.init(
        project=config.project,
        name=config.name or run_dir.name,
        id=wandb_id(config.project, run_dir),
        dir=run_dir,
        config=settings,
        mode=mode,
        resume="allow",
        settings=wandb.Settings(console="off", silent=True, init_timeout=30),
    )


def wandb_curve(curve: Curve) -> dict[str, Any]:
    """The evaluation curve as a W&B table and image; empty without an evaluation."""
    if not curve.accuracy:
        return {}
    import wandb

    rows = [[rate, accuracy] for rate, accuracy in sorted(curve.accuracy.items())]
    image = wandb.Image(figure([curve], "Accuracy by pruning rate"))
    return {"eval/curve": image, "eval/table": wandb.Table(columns=["rate", "accuracy"], data=rows)}


def wandb_key() -> str | None:
    import wandb

    return wandb.api.api_key


def wandb_id(project: str, run_dir: Path) -> str:
    """An id derived from project and folder, so that a resumed run continues the same W&B run."""
    return hashlib.blake2b(f"{project}/{run_dir.absolute()}".encode(), digest_size=8).hexdigest()
