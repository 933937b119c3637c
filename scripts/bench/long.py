"""A training step on one long clip that ranks share: seconds, peak memory, and bytes that a rank sends to the others.

Every variant runs in new processes that train as `train/run.py` does: in bf16, with gradient checkpointing and AdamW.
Memory includes weights, gradients, optimizer states and activations, but not the clip's pixels in host memory. On a CPU
it is the growth of the resident set without mapped files. Bytes count exchanged tokens, not weights or gradients. Ranks
on a CPU share its cores and caches, so seconds are not meaningful there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from data.types import Batch
from evs.families import adapter_for
from scripts.bench import models
from scripts.bench.timing import table
from train.config import Config, EngineConfig, ModelConfig, TrainConfig
from train.cost.peak_memory import watch
from train.distributed import build_engine, build_mesh, free_port
from train.model import exchange_heads, fit_for_training, weight_dtype
from train.optim import build_optimizer
from train.ranges import names, number, pruning_rates
from train.task import TrainRequest, UptrainTask

ENGINES = Path(__file__).resolve().parents[2] / "configs" / "engine"


@dataclass
class Options:
    shape: str = "small"  # one of scripts/bench/models.py
    tokens: int = number(32768, least=1)  # video tokens of the clip before pruning
    ranks: int = number(2, least=1)  # ranks that share the clip, compared with one
    rates: list[float] = pruning_rates([0.0, 0.75])
    engine: str = names("zero3", "ddp", "zero1", "zero2", "zero3")  # zero3 shares weights and optimizer states as well
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
    shared = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks))
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        context.Process(target=_step, args=(options, rate, results, shared | {"RANK": rank, "LOCAL_RANK": rank}))
        for rank in map(str, range(ranks))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise ValueError(f"{ranks} ranks at rate {rate:g} failed: lower tokens={options.tokens}")
    by_rank = [results.get() for _ in processes]
    return {name: max(figures[name] for figures in by_rank) for name in by_rank[0]}


def _step(options: Options, rate: float, results: Any, environment: dict[str, str]) -> None:
    """Run by each rank: put the figures of one step into `results`."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    config = _configuration(options, ranks := int(environment["WORLD_SIZE"]))
    engine = build_engine(config.engine, config.train, config.optim.clip)
    shape = models.build_shape(options.shape)
    _, height, width = shape.grid
    clip, short = (
        models.build_batch(replace(shape, clips=1, grid=(grids, height, width)))
        for grids in (options.tokens // (height * width), ranks)
    )
    memory = watch(engine.device)
    model = models.build_model(shape, torch.device("cpu"), weight_dtype(config))
    exchange_heads(fit_for_training(model, config.model))
    adapter, group = adapter_for(model), build_mesh(engine, config.engine).group
    bare = UptrainTask(model, adapter, models.PLACES["after"], group=group).train()
    task, optimizer = engine.prepare(bare, build_optimizer(bare, adapter.spec, config.optim))

    def train(batch: Batch) -> None:
        engine.backward(task(batch, TrainRequest((rate,))).loss_sum)
        engine.clip_grad_norm_(task.parameters(), config.optim.clip)
        optimizer.step()
        optimizer.zero_grad()

    train(short)  # makes the states of the optimizer
    sent = count_sent(int(environment["RANK"]))
    memory = replace(watch(engine.device), base=memory.base)
    begin = perf_counter()
    train(clip)
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    seconds = perf_counter() - begin
    results.put({"seconds": seconds, "peak_gib": memory.peak() or 0.0, "sent_mib": sum(sent) / 2**20})
    engine.end_training()


def _configuration(options: Options, ranks: int) -> Config:
    zero = OmegaConf.to_container(OmegaConf.load(ENGINES / f"{options.engine}.yaml"))
    engine = EngineConfig(**zero, sequence_parallel=ranks)  # type: ignore[arg-type]
    return Config(model=ModelConfig(path=""), engine=engine, train=TrainConfig(steps=1))


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
