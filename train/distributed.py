"""The rank of a process under any launcher, and the engine: accelerate on devices, ranks and DeepSpeed."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
from pydantic import ValidationError

from evs.families import spec_of
from evs.sequence_parallel import SequenceGroup
from train.config import EngineConfig, TrainConfig
from train.faults.extensions import build_extension

MARGIN_MINUTES = 1.0  # the watchdog ends a run so long before the process group would, whose error writes no report
BUILD_MINUTES = 10.0  # timeout of waiting for another process to build an extension
FOREIGN = ("ACCELERATE_", "FSDP_")  # prefixes of variables that `accelerate launch` sets from its own configuration


T = TypeVar("T")


@dataclass(frozen=True)
class Mesh:
    """The ranks of a run: groups of `sequence_size` consecutive ranks train on the same batch, which they share.

    Batches, rates and metrics follow the data-parallel rank. Evaluations give every process its own questions.
    """

    world: int = 1
    rank: int = 0
    sequence_size: int = 1
    group: SequenceGroup | None = None  # None if sequence_size is 1
    objects: Any = None  # process group of the same ranks for objects in host memory

    @property
    def data_size(self) -> int:
        """Number of batches that are trained on at the same time."""
        return self.world // self.sequence_size

    @property
    def data_rank(self) -> int:
        return self.rank // self.sequence_size

    @property
    def leads(self) -> bool:
        """True on the rank that loads the batches of its group and lists their samples."""
        return self.rank % self.sequence_size == 0


ONE_PROCESS = Mesh()


def build_mesh(engine: Accelerator, config: EngineConfig) -> Mesh:
    """The mesh of a run, after `build_engine`. Every rank must call it."""
    world, rank, size = engine.num_processes, engine.process_index, config.sequence_parallel
    if size == 1:
        return Mesh(world, rank)
    limit = timedelta(minutes=config.timeout_minutes + MARGIN_MINUTES)
    groups = [list(range(begin, begin + size)) for begin in range(0, world, size)]
    tensors, _ = dist.new_subgroups_by_enumeration(groups, timeout=limit)
    objects, _ = dist.new_subgroups_by_enumeration(groups, timeout=limit, backend="gloo")
    return Mesh(world, rank, size, SequenceGroup(tensors, rank % size, size), objects)


@dataclass(frozen=True)
class SharedItems(Iterable[T]):
    """The `items` of the leading rank, on all ranks of its group. Only the leading rank iterates over its own."""

    items: Iterable[T]
    number: int
    mesh: Mesh

    def __iter__(self) -> Iterator[T]:
        own, first = iter(self.items) if self.mesh.leads else None, self.mesh.data_rank * self.mesh.sequence_size
        for _ in range(self.number):
            box: list[Any] = [None if own is None else next(own)]
            dist.broadcast_object_list(box, src=first, group=self.mesh.objects)
            yield box[0]


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


def data_parallel_size(config: EngineConfig, world: int) -> int:
    """Number of batches that `world` processes train on at the same time.

    Raise ValueError if engine.sequence_parallel does not divide `world`.
    """
    size = config.sequence_parallel
    if world % size:
        divisors = ", ".join(str(number) for number in range(1, world + 1) if world % number == 0)
        raise ValueError(
            f"engine.sequence_parallel={size} does not divide the number of processes, {world}: use one of {divisors}"
        )
    return world // size


def check_sequence_parallel(size: int, hf_config: Any) -> None:
    """Raise ValueError if the language model of a Hugging Face configuration cannot be shared by `size` ranks."""
    text, spec = hf_config.get_text_config(), spec_of(hf_config)
    if size > 1 and spec.text_shape(hf_config).recurrent_layers:
        raise ValueError(
            f"engine.sequence_parallel={size}: the language model of {hf_config.model_type} has recurrent layers, "
            "whose state passes from token to token: use engine.sequence_parallel=1"
        )
    if size > 1 and "sliding_attention" in (getattr(text, "layer_types", None) or ()):
        raise ValueError(
            f"engine.sequence_parallel={size}: the language model of {hf_config.model_type} has sliding_attention "
            "layers, whose mask the ranks do not exchange: use engine.sequence_parallel=1"
        )
    heads, key_heads = text.num_attention_heads, text.num_key_value_heads
    sizes = [n for n in range(1, heads + 1) if heads % n == 0 and (key_heads % n == 0 or n % key_heads == 0)]
    if size not in sizes:
        raise ValueError(
            f"engine.sequence_parallel={size} does not divide the {heads} attention heads and {key_heads} key heads of "
            f"{hf_config.model_type}: use one of {', '.join(map(str, sizes))}"
        )


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
