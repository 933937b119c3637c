"""Opens a run's folder: locks it, removes partial checkpoints and selects the newest valid one to resume from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from accelerate import Accelerator

from train.checkpoint import manifest
from train.checkpoint.checkpoint import first_valid, quarantine, remove_partial
from train.checkpoint.lock import lock
from train.checkpoint.manifest import Manifest
from train.checkpoint.run_identity import check_same
from train.collectives import on_main


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a run resumes from, or its beginning. Holds the lock on the run's folder."""

    checkpoint: Path | None = None
    saved: Manifest | None = None
    lock_file: IO[str] | None = None

    @property
    def step(self) -> int:
        return self.saved.step if self.saved else 0

    def check(self, engine: Accelerator, shape: dict[str, Any], changes: Sequence[str]) -> None:
        """Raise ValueError if `shape`, which may be partial, differs from the saved run's beyond `changes`."""
        saved, name = self.saved, str(self.checkpoint)
        if saved is not None:
            on_main(engine, lambda: check_same(saved.shape, shape, changes, name))


def open_run(engine: Accelerator, run_dir: Path, checkpoints: Sequence[Path]) -> Origin:
    """Lock the folder, remove partial checkpoints, and resume from the first valid one of `checkpoints`, if any.

    Raise ValueError if the folder is in use or cannot be written, or if all checkpoints are damaged.
    """
    lock_file = on_main(engine, lambda: lock(run_dir))
    on_main(engine, lambda: remove_partial(run_dir / "checkpoints"))
    chosen = first_valid(engine, checkpoints)
    if chosen:
        on_main(engine, lambda: quarantine(checkpoints[: checkpoints.index(chosen[0])]))
    return Origin(*chosen, lock_file) if chosen else Origin(lock_file=lock_file)


def newest_shape(checkpoints: Sequence[Path]) -> dict[str, Any] | None:
    """The run's shape in the first readable manifest of the checkpoints; None without one."""
    for checkpoint in checkpoints:
        try:
            return manifest.read(checkpoint).shape
        except manifest.DamagedManifest:
            continue  # reported later by first_valid
    return None
