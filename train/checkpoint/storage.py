"""The engine's state on disk: weights and optimizer, by safetensors and plain tensors, or DeepSpeed's own shards.

Loading runs no code that a file brings along: torch reads tensors and the few classes named here, nothing else.
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

TAG = "deepspeed"  # DeepSpeed's name for one of several checkpoints of a folder


def save_state(engine: Accelerator, task: nn.Module, optimizer: Any, folder: Path) -> None:
    """Every rank must call it."""
    if sharded(engine):
        deepspeed: Any = task
        deepspeed.save_checkpoint(str(folder), TAG)
    elif engine.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        save_model(engine.unwrap_model(task), str(folder / "model.safetensors"))
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")


def load_state(engine: Accelerator, task: nn.Module, optimizer: Any, folder: Path) -> None:
    """As saved by as many ranks, or without shards by any number."""
    with trusting_tensors_only(), keeping_settings(optimizer):
        if sharded(engine):
            deepspeed: Any = task
            deepspeed.load_checkpoint(str(folder), TAG)
        else:
            load_model(engine.unwrap_model(task), str(folder / "model.safetensors"))
            optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location="cpu"))


def load_resharded(engine: Accelerator, task: nn.Module, optimizer: Any, folder: Path, scratch: Path) -> None:
    """DeepSpeed's shards as saved by another number of ranks, through its universal checkpoint in `scratch`."""
    on_main(engine, lambda: _universal(folder / TAG, scratch / TAG))
    deepspeed: Any = task
    deepspeed._config.load_universal_checkpoint = True
    try:
        with trusting_tensors_only(), keeping_settings(optimizer):  # DeepSpeed gives all groups the first one's
            deepspeed.load_checkpoint(str(scratch), TAG)
    finally:
        deepspeed._config.load_universal_checkpoint = False
    for state in deepspeed.optimizer.optimizer.state.values():  # and under ZeRO 3 all parameters one count of steps
        state["step"] = torch.as_tensor(state["step"]).clone()
    engine.wait_for_everyone()
    if engine.is_main_process:
        shutil.rmtree(scratch)


@contextmanager
def keeping_settings(optimizer: Any) -> Iterator[None]:
    """Inside, loading brings what the optimizer has learned; learning rates and the like stay those of this run."""
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    yield
    for group, settings in zip(optimizer.param_groups, own):
        group.update(settings)


def sharded(engine: Accelerator) -> bool:
    return engine.distributed_type == DistributedType.DEEPSPEED


def shares_parameters(engine: Accelerator) -> bool:
    """Whether ranks must call the same modules equally often (ZeRO 3)."""
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
    """The line that names the class."""
    lines = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line]
    return lines[0] if lines else first_line(error)


@contextmanager
def trusting_tensors_only() -> Iterator[None]:
    """Inside, whoever calls torch.load gets tensors and DeepSpeed's own records, or an error: no other class."""
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
