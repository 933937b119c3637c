"""Where reported values go: the console, a JSONL file, W&B."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from train.config import TrackerConfig


class Sink(Protocol):
    def write(self, step: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...


def append_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines at the end of a file that several processes may share."""
    if rows:
        with path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


@dataclass(frozen=True)
class Jsonl:
    """One line a report, appended: a resumed run goes on in the same file."""

    path: Path

    def write(self, step: int, values: dict[str, float]) -> None:
        append_lines(self.path, [{"step": step, **as_json(values)}])

    def close(self) -> None: ...


def as_json(values: dict[str, float]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: null in their place, and their names under `nonfinite`."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    return values | dict.fromkeys(bad) | ({"nonfinite": bad} if bad else {})


@dataclass(frozen=True)
class Console:
    """The progress bar, with time left and the values worth watching."""

    bar: tqdm
    shown: tuple[str, ...] = ("loss", "token_accuracy", "rate", "kept", "lr", "tokens_per_s")

    def write(self, step: int, values: dict[str, float]) -> None:
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix({name: f"{values[name]:.4g}" for name in self.shown if name in values})

    def close(self) -> None:
        self.bar.close()


@dataclass(frozen=True)
class Wandb:
    run: Any

    def write(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


def start_wandb(config: TrackerConfig, run_dir: Path, settings: dict) -> Any:
    """A W&B run under the run's own folder, offline when neither a key nor a mode is known."""
    import wandb

    key = os.environ.get("WANDB_API_KEY") or wandb.api.api_key
    mode: Any = os.environ.get("WANDB_MODE") or ("online" if key else "offline")
    return wandb.init(
        project=config.project,
        name=config.name or run_dir.name,
        id=run_dir.name,
        dir=run_dir,
        config=settings,
        mode=mode,
        resume="allow",
        settings=wandb.Settings(console="off", silent=True),
    )
