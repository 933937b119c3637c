"""The one place where whatever goes wrong with a sample becomes a reason to leave it out; what a sample may take."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread, local, main_thread
from typing import Any

from data.types import MediaError, RowError

AGAIN = 1.0  # seconds after which a sample is interrupted once more, should a library have swallowed it


@dataclass(frozen=True)
class SampleLimits:
    """What one sample may take: the keys data.sample_seconds and data.sample_gib."""

    seconds: float = 120.0
    gib: float = 8.0  # of its decoded pixels together; 768 frames of 1920x1080 are 4.5

    @property
    def max_bytes(self) -> int:
        """Bytes of decoded pixels."""
        return int(self.gib * 2**30)


LIMITS = SampleLimits()


class SampleTimeout(Exception):
    """The time of a sample is over. No OSError or ValueError: libraries catch these."""


class OutOfTime(MediaError):
    """It took longer than a sample may."""


class OutOfMemory(MediaError):
    """Memory was refused while it was read."""


_running = local()  # until: when the time of this thread's sample is over


@contextmanager
def guarded(name: str, seconds: float | None = None) -> Iterator[None]:
    """A MediaError that begins with `name` for every exception inside: of decoder, image library, processor, memory.

    Another when it takes longer than `seconds`: in a process's main thread by a signal, which is served between two
    calls of a library, elsewhere where `remaining` is asked. What already says why a sample cannot be used goes through
    as it is. A mistake of ours that strikes every sample goes through here too: data.max_bad_fraction shows it.
    """
    begun = time.monotonic()
    try:
        with _interrupted(seconds):
            yield
    except Exception as error:
        if seconds is not None and (isinstance(error, SampleTimeout) or time.monotonic() - begun >= seconds):
            # Whatever else a library says by then may be of its interruption.
            reason = f"took longer than data.sample_seconds={seconds:g}; shorten it or raise the limit"
            raise OutOfTime(f"{name}: {reason}") from None
        if isinstance(error, (MediaError, RowError, SampleTimeout)):
            raise
        if isinstance(error, MemoryError):
            reason = "MemoryError: reading it takes more than data.sample_gib, or than the machine has"
            raise OutOfMemory(f"{name}: {reason}") from None
        raise MediaError(f"{name}: {first_line(error)}") from error


@contextmanager
def row_errors(where: str) -> Iterator[None]:
    """Raise every exception inside as a RowError that begins with `where`, whatever library it comes from."""
    try:
        yield
    except RowError:
        raise
    except Exception as error:
        raise RowError(f"{where}: cannot be read ({first_line(error)}); correct or remove the row") from error


def remaining() -> float | None:
    """Seconds left to the sample that this thread is at, for a library that can limit itself; None: no limit.

    SampleTimeout where none are left.
    """
    until = getattr(_running, "until", None)
    if until is not None and until < time.monotonic():
        raise SampleTimeout
    return None if until is None else until - time.monotonic()


def check_decoded_size(name: str, pixels: int, max_bytes: int | None) -> None:
    """MediaError if so many decoded pixels are more than `max_bytes` bytes."""
    if max_bytes is not None and 3 * pixels > max_bytes:
        raise MediaError(
            f"{name}: its decoded pixels take {3 * pixels / 2**30:.2f} GiB, and {max_bytes / 2**30:.2f} are left of "
            "data.sample_gib; make the media smaller, lower data.max_frames or raise the limit"
        )


def first_line(error: Exception) -> str:
    """The class of an exception and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


@contextmanager
def _interrupted(seconds: float | None) -> Iterator[None]:
    """SampleTimeout after so many seconds, between two calls of whatever library is at work."""
    if seconds is None:
        yield
        return
    _running.until = time.monotonic() + seconds
    main = current_thread() is main_thread()
    if main:
        before = signal.signal(signal.SIGALRM, _raise)
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        if main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        _running.until = None


def _raise(*_: Any) -> None:
    raise SampleTimeout
