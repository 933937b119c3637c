"""Checkpoints: complete or absent, the newest few kept, each with the model as Hugging Face weights beside it.

run_dir/checkpoints/step_00000500/state/    what resuming needs, in the engine's own format
                                  model/    weights that from_pretrained reads (or a LoRA adapter's)
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from train.state.health import weights_are_finite
from train.task import UptrainTask


@dataclass(frozen=True)
class Checkpoints:
    engine: Accelerator
    folder: Path
    keep: int

    def save(self, step: int, task: torch.nn.Module) -> Path:
        """Write the state after `step` steps; every rank must call it. A failure stops the run, and so do weights that
        are not finite, of which no checkpoint is made (ValueError)."""
        if not weights_are_finite(self.engine, task):
            raise ValueError(
                f"the weights after step {step} are not finite: nothing saved, the checkpoints before stay"
            )
        final = self.folder / f"step_{step:08d}"
        partial = final.with_suffix(".partial")
        self._on_rank_0(shutil.rmtree, partial, ignore_errors=True)
        self.engine.save_state(str(partial / "state"))
        state = self.engine.get_state_dict(task)
        if self.engine.process_index == 0:
            save_weights(self.engine.unwrap_model(task), state, partial / "model")
        self.engine.wait_for_everyone()
        self._on_rank_0(replace_folder, partial, final)
        if self.engine.process_index == 0:
            for old in complete(self.folder)[: -self.keep]:
                shutil.rmtree(old)
        return final

    def load(self, checkpoint: Path) -> int:
        """Restore the engine, the model and the optimizer; the number of steps they have behind them."""
        self.engine.load_state(str(checkpoint / "state"))
        return step_of(checkpoint)

    @property
    def last(self) -> str:
        """The newest one, or that there is none."""
        found = complete(self.folder)
        return f"saved {found[-1]}" if found else "nothing saved"

    def _on_rank_0(self, function, *args, **kwargs) -> None:
        if self.engine.process_index == 0:
            function(*args, **kwargs)
        self.engine.wait_for_everyone()


def complete(folder: Path) -> list[Path]:
    """All finished checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.suffix == "" and path.is_dir())


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def find(resume: str | None, folder: Path) -> Path | None:
    """The checkpoint that `resume` asks for. Raises ValueError when a fresh run would write over an old one."""
    found = complete(folder)
    if resume is None:
        if found:
            raise ValueError(
                f"run_dir {folder.parent} already holds {found[-1].name}: add resume=auto or change run_dir"
            )
        return None
    if resume == "auto":
        return found[-1] if found else None
    if not (Path(resume) / "state").is_dir():
        raise ValueError(f"resume={resume} is no checkpoint: give auto or a folder .../checkpoints/step_NNNNNNNN")
    return Path(resume)


def replace_folder(source: Path, target: Path) -> None:
    """Rename, so that a checkpoint is there whole or not at all."""
    if target.exists():
        shutil.rmtree(target)
    source.rename(target)


def save_weights(task: UptrainTask, state: dict[str, Tensor], folder: Path) -> None:
    """Sharded safetensors under the module's own names, which every engine agrees on; with LoRA the adapter alone."""
    model: Any = task.model
    weights = {name.removeprefix("model."): tensor.contiguous() for name, tensor in state.items()}
    if isinstance(model, PeftModel):
        weights = get_peft_model_state_dict(model, state_dict=weights)
        model.save_pretrained(str(folder), state_dict=weights)
    else:
        model.save_pretrained(folder, state_dict=weights, save_original_format=False)
