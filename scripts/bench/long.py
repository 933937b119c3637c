"""A training step on one long clip that ranks share: seconds, peak memory, and bytes that a rank sends to the others.

Every variant runs in new processes, with gradient checkpointing and without an optimizer. The ranks of a CPU share its
cores and its caches, so that only their memory and their bytes are meaningful there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from evs.families import adapter_for
from evs.sequence_parallel import SequenceGroup
from scripts.bench import models
from scripts.bench.setting import our_step
from scripts.bench.timing import table
from train.config import ModelConfig
from train.cost.peak_memory import watch
from train.model import exchange_heads, fit_for_training
from train.ranges import number, pruning_rates
from train.task import UptrainTask

DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}


@dataclass
class Options:
    shape: str = "small"  # one of scripts/bench/models.py
    tokens: int = number(32768, least=1)  # video tokens of the clip before pruning
    ranks: int = number(2, least=1)  # ranks that share the clip, compared with one
    rates: list[float] = pruning_rates([0.0, 0.75])
    out: str | None = None  # JSON file for the figures


def long(options: Options) -> dict[str, Any]:
    """The figures of every number of ranks and rate, each of the rank that needs most."""
    result = {
        f"{ranks} at {rate:g}": measured(options, ranks, rate)
        for ranks in sorted({1, options.ranks})
        for rate in options.rates
    }
    rows = [(name, *(f"{value:.3f}" for value in figures.values())) for name, figures in result.items()]
    print(table(("ranks, rate", "seconds", "peak GiB", "MiB sent"), rows))
    return result


def measured(options: Options, ranks: int, rate: float) -> dict[str, float]:
    """One step in `ranks` new processes."""
    context = get_context("spawn")
    results = context.SimpleQueue()
    with TemporaryDirectory() as folder:
        shared = {"ranks": ranks, "store": str(Path(folder, "store")), "results": results}
        processes = [context.Process(target=_step, args=(rank, options, rate), kwargs=shared) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    if any(process.exitcode for process in processes):
        raise ValueError(f"{ranks} ranks at rate {rate:g} failed: lower tokens={options.tokens}")
    by_rank = [results.get() for _ in processes]
    return {name: max(figures[name] for figures in by_rank) for name in by_rank[0]}


def _step(rank: int, options: Options, rate: float, *, ranks: int, store: str, results: Any) -> None:
    """Run by each rank: put the figures of one step into `results`."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if gpu else "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    shape = models.build_shape(options.shape)
    _, height, width = shape.grid
    shape = replace(shape, clips=1, grid=(options.tokens // (height * width), height, width))
    batch, memory = models.build_batch(shape), watch(device)
    model = fit_for_training(models.build_model(shape, device, DTYPES[device.type]), ModelConfig())
    exchange_heads(model)
    group = SequenceGroup(dist.group.WORLD, rank, ranks) if ranks > 1 else None
    task = UptrainTask(model, adapter_for(model), models.PLACES["after"], group=group).train()
    sent = count_sent(rank)
    dist.barrier()
    begin = time.perf_counter()
    our_step(task, batch, rate)()
    if gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - begin
    results.put({"seconds": seconds, "peak_gib": memory.peak() or 0.0, "sent_mib": sum(sent) / 2**20})


def count_sent(rank: int) -> list[int]:
    """A list that grows by the bytes of every exchange that `rank` sends to other ranks."""
    sent: list[int] = []
    exchange = dist.all_to_all_single

    def counting(out: Any, x: Any, received: list[int], splits: list[int], **more: Any) -> Any:
        others = sum(splits) - splits[rank]
        sent.append(others * x[:1].numel() * x.element_size())
        return exchange(out, x, received, splits, **more)

    counted: Any = dist
    counted.all_to_all_single = counting
    return sent
