"""Checkpoints: whole or absent, the newest few and the best kept, each with Hugging Face weights beside its state.

run_dir/checkpoints/step_00000500/state/         what resuming needs, in the engine's own format
                                  model/         weights that from_pretrained reads (or a LoRA adapter's)
                                  ema/           their average, where train.ema asks for one
                                  manifest.json  sizes, checksums and the run's shape; written last
                                  score.json     mean accuracy over rates, where the step was evaluated
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
from train.checkpoint.manifest import Manifest
from train.checkpoint.storage import load_resharded, load_state, save_state
from train.collectives import on_main
from train.ema import Average
from train.faults.first_line import first_line
from train.faults.full_disk import inodes_used_up
from train.faults.nonfinite import weights_are_finite
from train.task import UptrainTask

AVERAGE = "average.safetensors"
FULL = 16 << 20  # bytes; where less is free a failed write is taken for a full disk


@dataclass(frozen=True)
class Checkpoints:
    """Saves and loads what `engine` has wrapped. `shape` is the run's (train.checkpoint.run_identity)."""

    engine: Accelerator
    folder: Path
    keep: int
    task: torch.nn.Module
    optimizer: Any
    shape: dict[str, Any]
    average: Average | None = None

    def save(self, step: int) -> Path:
        """Write the state after `step` steps; every rank must call it.

        Raises ValueError, having removed what was written, where weights are not finite or the disk is full.
        """
        if not weights_are_finite(self.engine, self.task):
            raise ValueError(f"weights after step {step} are not finite: not saved, {self.last}")
        final = self.folder / f"step_{step:08d}"
        partial = final.with_suffix(".partial")
        on_main(self.engine, lambda: self._make_room(partial))
        with self._removing(partial):
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
        """Note the mean accuracy of the checkpoint after `step` steps, if there is one: the best is kept."""
        checkpoint = self.folder / f"step_{step:08d}"
        if self.engine.is_main_process and checkpoint.is_dir():
            write_atomically(checkpoint / "score.json", json.dumps({"accuracy": accuracy}))

    def scored(self, step: int) -> bool:
        """Whether `score` has noted one for this step."""
        return accuracy_of(self.folder / f"step_{step:08d}") is not None

    def load(self, checkpoint: Path, saved: Manifest) -> None:
        """Restore the weights and the optimizer, whatever the number of ranks that saved them."""
        ranks, folder = saved.shape["world"]["ranks"], checkpoint / "state"
        if self.average is not None:
            self.average.load(folder / AVERAGE)
        if ranks == self.engine.num_processes or not (folder / "latest").exists():
            load_state(self.engine, self.task, self.optimizer, folder)
        else:
            scratch = self.folder / "universal.partial"
            load_resharded(self.engine, self.task, self.optimizer, folder, scratch)

    def delete_superseded(self) -> None:
        """Remove all but the newest and the best, once the weights of the newest have proven themselves."""
        if self.engine.is_main_process:
            for old in outdated(self.folder, self.keep):
                old.rename(gone := old.with_suffix(".partial"))  # at once: a half-removed one is none
                shutil.rmtree(gone)

    @property
    def last(self) -> str:
        """The newest one, in words."""
        found = complete(self.folder)
        return f"the newest checkpoint is {found[-1]}" if found else "there is no checkpoint"

    def _make_room(self, partial: Path) -> None:
        """ValueError where a checkpoint as large as the newest does not fit."""
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        found = complete(self.folder)
        needed = manifest.read(found[-1]).size if found else 0
        if free < needed:
            partial.rmdir()
            raise ValueError(
                f"disk full: {self.folder} has {free / 2**20:.0f} MiB free and a checkpoint needs {needed / 2**20:.0f}"
                f": not saved, {self.last}; make room and start again with resume=auto"
            )

    @contextmanager
    def _removing(self, partial: Path) -> Iterator[None]:
        """What fails inside becomes one line, and leaves nothing behind that fills the disk."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            no_inodes = inodes_used_up(self.folder)
            full = no_inodes or shutil.disk_usage(self.folder).free < FULL
            shutil.rmtree(partial, ignore_errors=True)
            reason = "no inodes left" if no_inodes else "disk full" if full else first_line(error)
            remedy = "make room and start again" if full else "start again"
            raise ValueError(f"{reason}: {partial} not saved, {self.last}; {remedy} with resume=auto") from error

    def _publish(self, partial: Path, final: Path) -> None:
        """Rename, so that a checkpoint is there whole or not at all."""
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        manifest.sync_folder(self.folder)


def complete(folder: Path) -> list[Path]:
    """All finished checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.suffix == "" and path.is_dir())


def outdated(folder: Path, keep: int) -> list[Path]:
    """All but the newest `keep` and the best."""
    found = complete(folder)
    scored = {path: accuracy for path in found if (accuracy := accuracy_of(path)) is not None}
    best = max(scored, key=lambda path: (scored[path], path.name)) if scored else None
    return [path for path in found[:-keep] if path != best]


def accuracy_of(checkpoint: Path) -> float | None:
    """Mean over rates, where it was evaluated."""
    try:
        return float(json.loads((checkpoint / "score.json").read_text())["accuracy"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def remove_partial(folder: Path) -> None:
    """What a run that died while saving has left."""
    for path in folder.glob("*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def candidates(resume: str | None, folder: Path) -> list[Path]:
    """The checkpoints that `resume` asks for, newest first. ValueError where a fresh run would write over one."""
    found = complete(folder)
    if resume is None:
        if found:
            raise ValueError(
                f"run_dir {folder.parent} already holds {found[-1].name}: add resume=auto or change run_dir"
            )
        return []
    if resume == "auto":
        return found[::-1]
    if not (Path(resume) / "state").is_dir():
        raise ValueError(f"resume={resume} is no checkpoint: give auto or a folder .../checkpoints/step_NNNNNNNN")
    return [Path(resume)]


def first_whole(engine: Accelerator, found: Sequence[Path]) -> tuple[Path, Manifest] | None:
    """The first that is what was written, and what is wrong with those before it. ValueError where none is whole."""
    wrong = []
    for checkpoint in found:
        try:
            saved = manifest.read(checkpoint)
            faults = manifest.faults(engine, checkpoint, saved)
        except ValueError as error:
            faults = [str(error)]
        if not faults:
            return checkpoint, saved
        wrong.append(f"{checkpoint}: {', '.join(faults[:3])}{', ...' if faults[3:] else ''}")
        engine.print(f"not resumed from {wrong[-1]}")
    if wrong:
        raise ValueError(f"no checkpoint is whole ({'; '.join(wrong)}): remove them to start anew")
    return None


def set_aside(damaged: Sequence[Path]) -> None:
    """Rename checkpoints that are not whole, so that they neither count as kept ones nor are taken for the newest."""
    for path in damaged:
        path.rename(path.with_suffix(".damaged"))


def save_weights(task: UptrainTask, state: dict[str, Tensor], folder: Path) -> None:
    """Sharded safetensors under the module's own names, which every engine agrees on; with LoRA the adapter alone."""
    model: Any = task.model
    weights = {name.removeprefix("model."): tensor.contiguous() for name, tensor in state.items()}
    if isinstance(model, PeftModel):
        weights = get_peft_model_state_dict(model, state_dict=weights)
        model.save_pretrained(str(folder), state_dict=weights)
    else:
        model.save_pretrained(folder, state_dict=weights, save_original_format=False)
