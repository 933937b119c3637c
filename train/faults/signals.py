"""Signals that ask a run to end. A handler notes them, and all ranks act on them together at the end of a step.

Imports nothing slow: `train/run.py` installs the handlers before its other imports.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGCONT", "SIGQUIT", "SIGXCPU")  # allowed in train.signals
DEFAULT = SIGNALS[:3]
PREEMPTED = 85  # exit status: the state is saved, start the run again with resume=auto
INTERRUPTED = 130  # exit status: the state is saved after Ctrl-C


@dataclass
class Stop:
    """Whether a signal has told this process to end."""

    status: int = 0  # PREEMPTED, INTERRUPTED, or 0 without a signal

    def note(self, number: int, _: FrameType | None) -> None:
        """Signal handler. A second Ctrl-C ends the process at once."""
        if number != signal.SIGINT:
            self.status = PREEMPTED
        elif self.status == INTERRUPTED:
            raise KeyboardInterrupt
        else:
            self.status = INTERRUPTED


def note(names: Sequence[str]) -> Stop:
    """Let the named signals and SIGINT only set the returned `Stop`."""
    stop = Stop()
    for number in _numbers([*names, "SIGINT"]):
        signal.signal(number, stop.note)
    return stop


def exit_at_once(names: Sequence[str]) -> None:
    """Let the named signals end the process with status PREEMPTED, for use before the first step, when there is nothing
    to save. Ctrl-C raises KeyboardInterrupt."""
    for number in _numbers(SIGNALS):
        if _is_ours(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)  # set by an earlier job, or before the configuration was read
    for number in _numbers(names):
        signal.signal(number, _exit)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def foreign_handler(number: int) -> Callable[..., Any] | None:
    """The handler that another library has set for a signal, if any."""
    handler = signal.getsignal(number)
    return handler if callable(handler) and not _is_ours(handler) else None


def _is_ours(handler: Any) -> bool:
    return getattr(handler, "__module__", None) == __name__


def _exit(number: int, _: FrameType | None) -> None:
    print(f"{signal.Signals(number).name} before the first step: nothing to save", file=sys.stderr)
    raise SystemExit(PREEMPTED)


def _numbers(names: Sequence[str]) -> list[int]:
    return [int(getattr(signal, name)) for name in dict.fromkeys(names)]
