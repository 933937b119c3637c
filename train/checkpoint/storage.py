"""The engine's state on disk: weights and optimizer as safetensors and plain tensors, or as DeepSpeed's shards.

Loading never runs code from a file: torch may create only tensors and the few classes listed here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_model, save_model
from torch import nn

from train.collectives import on_main
from train.faults.first_line import first_line

TAG = "deepspeed"  # DeepSpeed's name of a checkpoint within a folder


def save_state(engine: Accelerator, task: nn.Module, optimizer: Any, folder: Path) -> None:
    """Write the state of the engine. Every rank must call it."""
    if sharded(engine):
        deepspeed: Any = task
        deepspeed.save_checkpoint(str(folder), TAG)
    elif engine.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        save_model(engine.unwrap_model(task), str(folder / "model.safetensors"))
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")


def load_state(engine: Accelerator, task: nn.Module, optimizer: Any, folder: Path) -> None:
    """Restore a state saved on the same number of ranks, or on any number if it is not sharded."""
    with trusting_tensors_only(), keeping_settings(optimizer):
        if sharded(engine):
            deepspeed: Any = task
            deepspeed.load_checkpoint(str(folder), TAG)
        else:
            load_model(engine.unwrap_model(task), str(folder / "model.safetensors"))
            optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location="cpu"))


def load_resharded(engine: Accelerator, task: nn.Module, optimizer: Any, folder: Path, scratch: Path) -> None:
    """Restore DeepSpeed's shards from another number of ranks, by a universal checkpoint in the folder `scratch`."""
    on_main(engine, lambda: _universal(folder / TAG, scratch / TAG))
    deepspeed: Any = task
    deepspeed._config.load_universal_checkpoint = True
    try:
        with trusting_tensors_only(), keeping_settings(optimizer):  # DeepSpeed gives all groups those of the first
            deepspeed.load_checkpoint(str(scratch), TAG)
    finally:
        deepspeed._config.load_universal_checkpoint = False
    # Under ZeRO 3, DeepSpeed shares one step tensor among parameters.
    for state in deepspeed.optimizer.optimizer.state.values():
        state["step"] = torch.as_tensor(state["step"]).clone()
    engine.wait_for_everyone()
    if engine.is_main_process:
        shutil.rmtree(scratch)


@contextmanager
def keeping_settings(optimizer: Any) -> Iterator[None]:
    """Keep this run's learning rates and other settings of the optimizer while a state is loaded."""
    saved = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    yield
    for group, settings in zip(optimizer.param_groups, saved):
        group.update(settings)


def sharded(engine: Accelerator) -> bool:
    """True if DeepSpeed shards the state over ranks."""
    return engine.distributed_type == DistributedType.DEEPSPEED


def shares_parameters(engine: Accelerator) -> bool:
    """True if ranks must call the same modules equally often (ZeRO 3)."""
    return sharded(engine) and engine.state.deepspeed_plugin.zero_stage == 3


def _universal(source: Path, target: Path) -> None:
    from deepspeed.checkpoint.ds_to_universal import main

    with trusting_tensors_only():
        main(
            SimpleNamespace(
                input_folder=str(source),
                output_folder=str(target),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )


def _reason(error: Exception) -> str:
    """The line of the error that names the rejected class."""
    lines = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line]
    return lines[0] if lines else first_line(error)


@contextmanager
def trusting_tensors_only() -> Iterator[None]:
    """Let torch.load create only tensors and DeepSpeed's own records. Raise ValueError for any other class."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            yield
    except UnpicklingError as error:
        raise ValueError(f"the checkpoint holds more than tensors and is not loaded: {_reason(error)}") from error
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def weights_are_finite(engine: Accelerator, task: nn.Module) -> bool:
    """True if all weights are finite on all ranks. Each rank checks what it holds (its shards under ZeRO 3)."""
    local = [getattr(p, "ds_tensor", p).detach().isfinite().all() for p in task.parameters()]
    nonfinite = (~torch.stack([is_finite.to(engine.device) for is_finite in local])).sum()
    return int(engine.reduce(nonfinite, reduction="sum")) == 0
