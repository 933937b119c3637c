"""Where a run starts: its folder is locked and tidied, and the newest whole checkpoint found to be of the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from accelerate import Accelerator

from train.checkpoint import manifest
from train.checkpoint.checkpoint import first_whole, remove_partial, set_aside
from train.checkpoint.lock import lock
from train.checkpoint.manifest import Manifest
from train.checkpoint.run_identity import check_same
from train.collectives import on_main


@dataclass(frozen=True)
class Origin:
    """A checkpoint, or the beginning. The run's folder is locked as long as this lives."""

    checkpoint: Path | None = None
    saved: Manifest | None = None
    held: IO[str] | None = None

    @property
    def step(self) -> int:
        return self.saved.step if self.saved else 0

    def check(self, engine: Accelerator, shape: dict[str, Any], changes: Sequence[str]) -> None:
        """Raises ValueError where a run of this `shape`, or of what is known of it, is not the one that was saved."""
        then, name = self.saved, str(self.checkpoint)
        if then is not None:
            on_main(engine, lambda: check_same(then.shape, shape, changes, name))


def open_run(engine: Accelerator, run_dir: Path, found: Sequence[Path]) -> Origin:
    """Lock the folder against other runs, remove what a dead one left, and choose among the checkpoints `found`.

    Raises ValueError where the folder is in use or cannot be written, or none of the checkpoints is whole.
    """
    held = on_main(engine, lambda: lock(run_dir))
    on_main(engine, lambda: remove_partial(run_dir / "checkpoints"))
    chosen = first_whole(engine, found)
    if chosen:
        on_main(engine, lambda: set_aside(found[: found.index(chosen[0])]))
    return Origin(*chosen, held) if chosen else Origin(held=held)


def newest_shape(found: Sequence[Path]) -> dict[str, Any] | None:
    """The run's shape in the first of the checkpoints whose manifest can be read."""
    for checkpoint in found:
        try:
            return manifest.read(checkpoint).shape
        except ValueError:
            continue  # to be reported when its files are checked
    return None
