"""Signals that ask a run to end: noted when they arrive, acted on at the end of a step by all ranks together.

Imports nothing that takes time: `train/run.py` installs the handlers before its other imports.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGCONT", "SIGQUIT", "SIGXCPU")  # that a run may be told to note
DEFAULT = SIGNALS[:3]
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


def note(names: Sequence[str]) -> Stop:
    """From now on the named signals and SIGINT do no more than set the returned `Stop`."""
    stop = Stop()
    for number in _numbers([*names, "SIGINT"]):
        signal.signal(number, stop.note)
    return stop


def exit_at_once(names: Sequence[str]) -> None:
    """Before the first step nothing is lost: exit with the status that asks for a restart. Ctrl-C interrupts."""
    for number in _numbers(SIGNALS):
        if _is_ours(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)  # of an earlier job, or before the names were known
    for number in _numbers(names):
        signal.signal(number, _exit)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def foreign_handler(number: int) -> Callable[..., Any] | None:
    """The handler that a library has set for a signal."""
    handler = signal.getsignal(number)
    return handler if callable(handler) and not _is_ours(handler) else None


def _is_ours(handler: Any) -> bool:
    return getattr(handler, "__module__", None) == __name__


def _exit(number: int, _: FrameType | None) -> None:
    print(f"{signal.Signals(number).name} before the first step: nothing to save", file=sys.stderr)
    raise SystemExit(PREEMPTED)


def _numbers(names: Sequence[str]) -> list[int]:
    return [int(getattr(signal, name)) for name in dict.fromkeys(names)]
