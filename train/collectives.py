"""Collective operations of the ranks on Python objects."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from train.faults.signals import INTERRUPTED, PREEMPTED, Stop
from train.faults.watchdog import WATCHDOG

T = TypeVar("T")
POLL, MESSAGE_INTERVAL = 0.2, 30.0  # seconds
_meetings = count()  # all ranks make the same calls, so their counts agree


def on_main(engine: Accelerator, function: Callable[[], T]) -> T | None:
    """`function()` on the main rank, None elsewhere. Its ValueError or OSError ends all ranks and is raised there."""
    result, failed = None, None
    if engine.is_main_process:
        try:
            result = function()
        except (ValueError, OSError) as error:
            failed = error
    if broadcast_object_list([failed is not None])[0]:
        raise failed or SystemExit(2)  # the main rank prints the reason
    return result


def from_main(engine: Accelerator, function: Callable[[], T]) -> T:
    """`function()` of the main rank, on every rank. Errors as in `on_main`."""
    return cast(T, broadcast_object_list([on_main(engine, function)])[0])


def shared(engine: Accelerator, items: Sequence[Any]) -> Sequence[Any]:
    """This rank's part of the items."""
    return items[engine.process_index :: engine.num_processes]


def collected(rows: list[Any]) -> list[Any]:
    """All ranks' rows, on every rank."""
    return list(gather_object(rows))


def together(what: str, value: str) -> list[str]:
    """The `value` of every rank, in order. Waits without the time limit of a collective, because disks may be slow."""
    if not dist.is_initialized():
        return [value]
    store = dist.PrefixStore(f"{what} {next(_meetings)}", dist.distributed_c10d._get_default_store())
    store.set(str(dist.get_rank()), value)
    missing, last_message = [str(rank) for rank in range(dist.get_world_size())], time.monotonic()
    while missing := [rank for rank in missing if not store.check([rank])]:
        WATCHDOG.progress()  # each missing rank has its own watchdog
        if time.monotonic() - last_message > MESSAGE_INTERVAL:
            print(f"{what}: rank {dist.get_rank()} waits for rank {', '.join(missing)}", flush=True)
            last_message = time.monotonic()
        time.sleep(POLL)
    return [store.get(str(rank)).decode() for rank in range(dist.get_world_size())]


def agree_to_stop(engine: Accelerator, norm: float | torch.Tensor | None, stop: Stop) -> tuple[float, int]:
    """(gradient norm, exit status or 0), equal on all ranks, by one small reduction and one synchronization."""
    requests = torch.tensor([stop.status == PREEMPTED, stop.status == INTERRUPTED], dtype=torch.float32)
    requests = engine.reduce(requests.to(engine.device), reduction="sum")
    number = torch.as_tensor(float("nan") if norm is None else norm, dtype=torch.float32, device=engine.device)
    value, preempted, interrupted = torch.cat([number.detach().reshape(1), requests]).tolist()
    return value, PREEMPTED if preempted else INTERRUPTED if interrupted else 0
