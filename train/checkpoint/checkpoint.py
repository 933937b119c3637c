"""Saves, restores and deletes checkpoints. Each appears atomically and holds Hugging Face weights next to its state.

run_dir/checkpoints/step_00000500/state/         weights and optimizer state for resuming, in the engine's format
                                  model/         weights that from_pretrained reads, or a LoRA adapter
                                  ema/           their moving average, with train.ema
                                  manifest.json  sizes, checksums and the run's shape, written last
                                  score.json     mean accuracy over rates, if the step was evaluated
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor

from train.atomic_write import write_atomically
from train.checkpoint import manifest
from train.checkpoint.manifest import DamagedManifest, Manifest
from train.checkpoint.storage import load_resharded, load_state, save_state, weights_are_finite
from train.collectives import on_main
from train.ema import Average
from train.faults.first_line import first_line
from train.faults.full_disk import inodes_used_up
from train.task import UptrainTask

AVERAGE = "average.safetensors"
FULL_DISK_BYTES = 16 << 20  # if less is free after a failed write, the disk is assumed to be full


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run. `engine` has wrapped `task` and `optimizer`; for `shape` see run_identity."""

    engine: Accelerator
    folder: Path
    keep: int
    task: torch.nn.Module
    optimizer: Any
    shape: dict[str, Any]
    average: Average | None = None

    def save(self, step: int) -> Path:
        """Save the state after `step` steps and return the checkpoint. Every rank must call it.

        Raise ValueError, and leave no partial files, if weights are not finite or the disk is full.
        """
        if not weights_are_finite(self.engine, self.task):
            raise ValueError(
                f"weights after step {step} are not finite: not saved, {self.last}; lower optim.lr and start again"
            )
        final = self.folder / f"step_{step:08d}"
        partial = final.with_suffix(".partial")
        on_main(self.engine, lambda: self._check_space(partial))
        with self._removed_on_failure(partial):
            save_state(self.engine, self.task, self.optimizer, partial / "state")
            state = self.engine.get_state_dict(self.task)
            if self.engine.is_main_process:
                task = self.engine.unwrap_model(self.task)
                save_weights(task, state, partial / "model")
                if self.average is not None:
                    self.average.save(partial / "state" / AVERAGE)
                    save_weights(task, self.average.into(state), partial / "ema")
            self.engine.wait_for_everyone()
            manifest.seal(self.engine, partial, step, self.shape)
        on_main(self.engine, lambda: self._publish(partial, final))
        return final

    def score(self, step: int, accuracy: float) -> None:
        """Write the mean accuracy into the checkpoint of `step`, if it exists. The best checkpoint is kept."""
        checkpoint = self.folder / f"step_{step:08d}"
        if self.engine.is_main_process and checkpoint.is_dir():
            write_atomically(checkpoint / "score.json", json.dumps({"accuracy": accuracy}))

    def scored(self, step: int) -> bool:
        """True if the checkpoint of `step` has a mean accuracy."""
        return accuracy_of(self.folder / f"step_{step:08d}") is not None

    def load(self, checkpoint: Path, saved: Manifest) -> None:
        """Restore the weights and the optimizer, even if another number of ranks saved them."""
        world, folder = saved.shape["world"], checkpoint / "state"
        processes = world["ranks"] * world.get("sequence", 1)
        if self.average is not None:
            self.average.load(folder / AVERAGE)
        if processes == self.engine.num_processes or not (folder / "latest").exists():
            load_state(self.engine, self.task, self.optimizer, folder)
        else:
            scratch = self.folder / "universal.partial"
            load_resharded(self.engine, self.task, self.optimizer, folder, scratch)

    def delete_superseded(self) -> None:
        """Delete all checkpoints but the newest `keep` and the best; call it after a step has proven the newest."""
        if self.engine.is_main_process:
            for old in outdated(self.folder, self.keep):
                old.rename(doomed := old.with_suffix(".partial"))  # atomic: a half-deleted folder is not a checkpoint
                shutil.rmtree(doomed)

    @property
    def last(self) -> str:
        """The newest checkpoint, in words for a message."""
        checkpoints = complete(self.folder)
        return f"the newest checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint"

    def _check_space(self, partial: Path) -> None:
        """Create an empty folder `partial`. Raise ValueError if a checkpoint as large as the newest does not fit."""
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        checkpoints = complete(self.folder)
        needed = manifest.read(checkpoints[-1]).size if checkpoints else 0
        if free < needed:
            partial.rmdir()
            raise ValueError(
                f"disk full: {self.folder} has {free / 2**20:.0f} MiB free and a checkpoint needs {needed / 2**20:.0f}"
                f": not saved, {self.last}; free space and start again with resume=auto"
            )

    @contextmanager
    def _removed_on_failure(self, partial: Path) -> Iterator[None]:
        """Turn a failed write into a ValueError, and remove what was written, which may fill the disk."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            no_inodes = inodes_used_up(self.folder)
            is_full = no_inodes or shutil.disk_usage(self.folder).free < FULL_DISK_BYTES
            shutil.rmtree(partial, ignore_errors=True)
            reason = "no inodes left" if no_inodes else "disk full" if is_full else first_line(error)
            remedy = "free space and start again" if is_full else "start again"
            raise ValueError(f"{reason}: {partial} not saved, {self.last}; {remedy} with resume=auto") from error

    def _publish(self, partial: Path, final: Path) -> None:
        """Rename `partial`, so that the checkpoint appears only when it is complete."""
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        manifest.sync_folder(self.folder)


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.suffix == "" and path.is_dir())


def outdated(folder: Path, keep: int) -> list[Path]:
    """All but the newest `keep` and the best."""
    checkpoints = complete(folder)
    scored = {path: accuracy for path in checkpoints if (accuracy := accuracy_of(path)) is not None}
    best = max(scored, key=lambda path: (scored[path], path.name)) if scored else None
    return [path for path in checkpoints[:-keep] if path != best]


def accuracy_of(checkpoint: Path) -> float | None:
    """Mean accuracy over rates; None if the checkpoint was not evaluated."""
    try:
        return float(json.loads((checkpoint / "score.json").read_text())["accuracy"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def remove_partial(folder: Path) -> None:
    """Remove the partial checkpoints of a run that died while saving."""
    for path in folder.glob("*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def candidates(resume: str | None, folder: Path) -> list[Path]:
    """The checkpoints that `resume` selects, newest first.

    Raise ValueError if `resume` is not a checkpoint, or if a new run would overwrite existing checkpoints.
    """
    checkpoints = complete(folder)
    if resume is None:
        if checkpoints:
            raise ValueError(
                f"run_dir {folder.parent} already holds {checkpoints[-1].name}: add resume=auto or change run_dir"
            )
        return []
    if resume == "auto":
        return checkpoints[::-1]
    if not (Path(resume) / "state").is_dir():
        raise ValueError(f"resume={resume} is not a checkpoint: give auto or a folder .../checkpoints/step_NNNNNNNN")
    return [Path(resume)]


def first_valid(engine: Accelerator, checkpoints: Sequence[Path]) -> tuple[Path, Manifest] | None:
    """The first checkpoint whose files match its manifest, and its manifest; None without checkpoints.

    Prints what is wrong with those before it. Raise ValueError if all are damaged or a later version wrote one.
    """
    damaged = []
    for checkpoint in checkpoints:
        try:
            saved = manifest.read(checkpoint)
            faults = manifest.faults(engine, checkpoint, saved)
        except DamagedManifest as error:
            faults = [str(error)]
        if not faults:
            return checkpoint, saved
        damaged.append(f"{checkpoint}: {', '.join(faults[:3])}{', ...' if faults[3:] else ''}")
        engine.print(f"not resumed from {damaged[-1]}")
    if damaged:
        raise ValueError(f"all checkpoints are damaged ({'; '.join(damaged)}): remove them to start from the beginning")
    return None


def quarantine(damaged: Sequence[Path]) -> None:
    """Rename damaged checkpoints to `.damaged`, so that they are neither resumed from nor counted for train.keep."""
    for path in damaged:
        path.rename(path.with_suffix(".damaged"))


def save_weights(task: UptrainTask, state: dict[str, Tensor], folder: Path) -> None:
    """Write sharded safetensors under the model's own parameter names, or with LoRA the adapter only."""
    model: Any = task.model
    weights = {name.removeprefix("model."): tensor.contiguous() for name, tensor in state.items()}
    if isinstance(model, PeftModel):
        weights = get_peft_model_state_dict(model, state_dict=weights)
        model.save_pretrained(str(folder), state_dict=weights)
    else:
        model.save_pretrained(folder, state_dict=weights, save_original_format=False)
