"""The rank of a process under any launcher, and the engine: accelerate on devices, ranks and DeepSpeed."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
from pydantic import ValidationError

from train.config import EngineConfig, TrainConfig
from train.faults.extensions import build_extension

MARGIN_MINUTES = 1.0  # the watchdog ends a run so long before the process group would, whose error writes no report
BUILD_MINUTES = 10.0  # timeout of waiting for another process to build an extension
FOREIGN = ("ACCELERATE_", "FSDP_")  # prefixes of variables that `accelerate launch` sets from its own configuration


def join() -> None:
    """Set the environment variables of this process's rank, unless its launcher has set them."""
    os.environ.update(rank_environment(os.environ, torch.cuda.device_count()))


def build_engine(config: EngineConfig, train: TrainConfig, clip: float) -> Accelerator:
    """The engine of the configuration. Raise ValueError if it does not support the number of processes started."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]  # the command line alone configures a run
    world = int(os.environ.get("WORLD_SIZE", 1))
    check_world(config.name, world, int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count())
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run of the same process, in a sweep
    limit = timedelta(minutes=config.timeout_minutes + MARGIN_MINUTES)
    cpu = not torch.cuda.is_available()
    deepspeed = None
    if config.name.startswith("zero"):
        _stand_alone(world)
        if cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        deepspeed = DeepSpeedPlugin(hf_ds_config=deepspeed_config(config, train, clip))
        if cpu:  # before the Accelerator, which would otherwise see one process per group
            with PartialState(cpu=True, timeout=limit).local_main_process_first():
                build_extension("ShareMemCommBuilder", 60 * min(BUILD_MINUTES, config.timeout_minutes / 2))
    engine = Accelerator(
        cpu=cpu and deepspeed is None,
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        gradient_accumulation_steps=train.accumulation,
        deepspeed_plugin=deepspeed,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=limit)],
    )
    if deepspeed is not None and not cpu and config.zero.get("offload_optimizer"):
        with engine.local_main_process_first():
            build_extension("CPUAdamBuilder", 60 * min(BUILD_MINUTES, config.timeout_minutes / 2))
    return engine


def check_world(engine: str, world: int, here: int, gpus: int) -> None:
    """Raise ValueError if `engine` does not support `world` processes, `here` of them on a machine with `gpus` GPUs."""
    if engine == "none" and world > 1:
        raise ValueError(f"engine=none runs one process, but {world} were started: use engine=ddp or zero1..zero3")
    if gpus and here > gpus:
        raise ValueError(f"{here} processes were started on a machine with {gpus} GPUs: start one process per GPU")


def rank_environment(env: Mapping[str, str], gpus: int) -> dict[str, str]:
    """RANK, WORLD_SIZE, MASTER_ADDR and the other variables that torch reads, if no launcher has set them.

    They follow from the variables of srun (`SLURM_*`) or of submitit's local executor (`SUBMITIT_LOCAL_*`). Empty for a
    single process, and for a SLURM batch script, which is not a task of a step.
    """
    if "RANK" in env:
        return {}
    if "SLURM_STEP_NUM_TASKS" in env and "SLURM_PROCID" in env:
        here = tasks_per_node(env["SLURM_STEP_TASKS_PER_NODE"])[int(env["SLURM_NODEID"])]
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        host, number = first_host(env["SLURM_STEP_NODELIST"]), int(env["SLURM_JOB_ID"]) * 31 + int(env["SLURM_STEP_ID"])
    elif int(env.get("SUBMITIT_LOCAL_NTASKS", 1)) > 1:
        here = int(env["SUBMITIT_LOCAL_NTASKS"])
        names = ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID")
        host, number = "127.0.0.1", int(re.sub(r"\D", "", env["SUBMITIT_LOCAL_JOB_ID"]))
    else:
        return {}
    rank, world, local = (env[name] for name in names)
    if world == "1":
        return {}
    bound = gpus == 1  # each task sees only its own GPU (srun --gpus-per-task=1)
    return {
        "RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_RANK": "0" if bound else local,
        "LOCAL_WORLD_SIZE": "1" if bound else str(here),
        "MASTER_ADDR": env.get("MASTER_ADDR", host),
        "MASTER_PORT": env.get("MASTER_PORT", str(15000 + number % 15000)),  # below the system's own range
    }


def tasks_per_node(text: str) -> list[int]:
    """SLURM's `2(x3),1` as [2, 2, 2, 1]."""
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, nodes in groups for _ in range(int(nodes or 1))]


def first_host(nodes: str) -> str:
    """The first name of SLURM's node list, such as `gpu[007-009,012],login1`."""
    prefix, first = re.findall(r"^([^\[,]+)(?:\[([^\],-]+))?", nodes)[0]
    return prefix + first


def check_zero(config: EngineConfig) -> None:
    """Raise ValueError for settings that DeepSpeed refuses under `zero_optimization`."""
    if not config.name.startswith("zero"):
        return
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # slow to import, and used only here

    try:
        DeepSpeedZeroConfig(**config.zero)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"engine.zero.{key}={first['input']} is refused by DeepSpeed: {first['msg']}") from error


def _stand_alone(world: int) -> None:
    """Prepare a process group of one process, which DeepSpeed needs, if torchrun did not start the process."""
    if world == 1:
        for key, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
            os.environ.setdefault(key, value)
        os.environ.setdefault("MASTER_PORT", str(free_port()))


def free_port() -> int:
    """A port that nothing on this machine listens on, so that runs do not collide."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def deepspeed_config(config: EngineConfig, train: TrainConfig, clip: float) -> dict[str, Any]:
    """DeepSpeed's configuration. Its batch size appears in DeepSpeed's logs only."""
    return {
        "train_micro_batch_size_per_gpu": train.batch_size,
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": clip,
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": dict(config.zero),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": torch.cuda.is_available(),
    }
