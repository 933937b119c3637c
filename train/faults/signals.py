"""Signals that ask a run to end: remembered when they come, acted on at the end of a step, by all ranks together."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from accelerate import Accelerator

PREEMPTED = 85  # exit status: saved, to be started again with resume=auto
INTERRUPTED = 130  # exit status: saved after Ctrl-C


@dataclass
class Stop:
    """Whether this process was asked to end, and how."""

    status: int = 0

    def note(self, number: int, _: FrameType | None) -> None:
        """A handler. Ctrl-C a second time ends the process at once."""
        if number != signal.SIGINT:
            self.status = PREEMPTED
        elif self.status == INTERRUPTED:
            raise KeyboardInterrupt
        else:
            self.status = INTERRUPTED


@contextmanager
def noted(names: Sequence[str]) -> Iterator[Stop]:
    """Inside, the named signals and SIGINT do no more than set the yielded `Stop`."""
    stop = Stop()
    before = {number: signal.signal(number, stop.note) for number in _numbers([*names, "SIGINT"])}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_at_once(names: Sequence[str]) -> None:
    """Before the first step nothing is lost: end with the status that asks to be started again."""
    for number in _numbers(names):
        signal.signal(number, _leave)


def _leave(number: int, _: FrameType | None) -> None:
    print(f"{signal.Signals(number).name} before the first step: nothing to save", file=sys.stderr)
    raise SystemExit(PREEMPTED)


def _numbers(names: Sequence[str]) -> list[int]:
    return [int(getattr(signal, name)) for name in dict.fromkeys(names)]


def agreed(engine: Accelerator, norm: float | torch.Tensor | None, stop: Stop) -> tuple[float, int]:
    """(gradient norm, exit status or 0), the same on all ranks: one small reduction and one wait for the device."""
    asked = torch.tensor([stop.status == PREEMPTED, stop.status == INTERRUPTED], dtype=torch.float32)
    asked = engine.reduce(asked.to(engine.device), reduction="sum")
    number = torch.as_tensor(float("nan") if norm is None else norm, dtype=torch.float32, device=engine.device)
    value, preempted, interrupted = torch.cat([number.detach().reshape(1), asked]).tolist()
    return value, PREEMPTED if preempted else INTERRUPTED if interrupted else 0
