"""Time and memory limits of a sample, and the conversion of any failure into a reason to skip the sample."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread, local, main_thread
from types import FrameType

from data.types import MediaError, RowError

REPEAT_SECONDS = 1.0  # the timeout is raised again at this interval, in case a library swallowed it
GUARDING = (__file__, contextlib.__file__)  # their frames are not interrupted


@dataclass(frozen=True)
class SampleLimits:
    """Time and memory that one sample may take (data.sample_seconds and data.sample_gib)."""

    seconds: float = 120.0
    gib: float = 8.0  # decoded pixels of all its media; 768 frames of 1920x1080 take 4.5

    @property
    def max_bytes(self) -> int:
        """Limit on decoded pixels, in bytes."""
        return int(self.gib * 2**30)


LIMITS = SampleLimits()


class SampleTimeout(Exception):
    """The time limit of a sample has expired. Not an OSError or ValueError, because libraries catch those."""


class OutOfTime(MediaError):
    """Reading the media took longer than the time limit of a sample."""


class OutOfMemory(MediaError):
    """Memory allocation failed while the media were read."""


_running = local()  # attribute `until`: deadline of this thread's sample (monotonic seconds)


@contextmanager
def guarded(name: str, seconds: float | None = None) -> Iterator[None]:
    """Turn every exception inside into a MediaError that begins with `name`; MediaError and RowError pass unchanged.

    Raises OutOfTime if the block takes longer than `seconds`. In the main thread of a process a signal interrupts the
    block between two library calls; in other threads the limit is enforced where `remaining` is called. A programming
    error that affects every sample is converted too: data.max_bad_fraction then ends the run.
    """
    started = time.monotonic()
    try:
        with _interrupted(seconds):
            yield
    except Exception as error:
        if seconds is not None and (isinstance(error, SampleTimeout) or time.monotonic() - started >= seconds):
            # An error of a library after the deadline may be a consequence of the interruption.
            reason = f"took longer than data.sample_seconds={seconds:g}; shorten it or raise the limit"
            raise OutOfTime(f"{name}: {reason}") from None
        if isinstance(error, (MediaError, RowError, SampleTimeout)):
            raise
        if isinstance(error, MemoryError):
            reason = "MemoryError: reading it takes more memory than data.sample_gib allows or the machine has"
            raise OutOfMemory(f"{name}: {reason}") from None
        raise MediaError(f"{name}: {first_line(error)}") from error


@contextmanager
def row_errors(where: str) -> Iterator[None]:
    """Turn every exception inside into a RowError that begins with `where`."""
    try:
        yield
    except RowError:
        raise
    except Exception as error:
        raise RowError(f"{where}: cannot be read ({first_line(error)}); correct or remove the row") from error


def remaining() -> float | None:
    """Seconds left for this thread's sample, for libraries that take a timeout; None: no limit.

    Raises SampleTimeout if none are left.
    """
    until = getattr(_running, "until", None)
    if until is not None and until < time.monotonic():
        raise SampleTimeout
    return None if until is None else until - time.monotonic()


def check_decoded_size(name: str, pixels: int, max_bytes: int | None) -> None:
    """Raise MediaError if so many decoded RGB pixels exceed `max_bytes`."""
    if max_bytes is not None and 3 * pixels > max_bytes:
        raise MediaError(
            f"{name}: its decoded pixels take {3 * pixels / 2**30:.2f} GiB, and {max_bytes / 2**30:.2f} are left of "
            "data.sample_gib; make the media smaller, lower data.max_frames or raise the limit"
        )


def first_line(error: Exception) -> str:
    """The class of an exception and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


@contextmanager
def _interrupted(seconds: float | None) -> Iterator[None]:
    """Raise SampleTimeout in the block after so many seconds, between two library calls."""
    if seconds is None:
        yield
        return
    _running.until = time.monotonic() + seconds
    main = current_thread() is main_thread()
    if main:
        previous = signal.signal(signal.SIGALRM, _raise)
        signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT_SECONDS)
    try:
        yield
    finally:
        if main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        _running.until = None


def _raise(_: int, frame: FrameType | None) -> None:
    """Raise SampleTimeout, except in the code that enters and leaves the block, from which it would escape."""
    if frame is None or frame.f_code.co_filename not in GUARDING:
        raise SampleTimeout
