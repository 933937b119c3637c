"""Headers of media, many read at once: each within the time of a sample, all of them within its memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeAlias

from data.media.container import VideoInfo, probe
from data.media.frame_list import probe_frames
from data.media.images import probe_image
from data.sample_limits import OutOfMemory, OutOfTime, SampleLimits, SampleTimeout, guarded
from data.types import FrameList, ImageRef, MediaError, VideoRef

THREADS = 16  # files that are opened at once
STACK = 16 << 20  # bytes that a thread needs before it reads anything
POLL = 0.5  # seconds, at most, between two looks for files that take too long
REMEMBERED = 1 << 14

Ref: TypeAlias = VideoRef | ImageRef
Header: TypeAlias = VideoInfo | tuple[int, int] | MediaError

_known: dict[tuple[Ref, str], Header] = {}  # across the chunks that a worker makes


def read_headers(refs: Sequence[Ref], limits: SampleLimits) -> dict[Ref, Header]:
    """The header of each, or why it cannot be used."""
    found = _read_together(refs, limits)
    found |= _read_together(_where(found, OutOfTime), limits)  # once more, since a disk may have been busy
    for ref in _where(found, OutOfMemory):  # alone, since it may only have stood beside the one that is too large
        found |= _read_together([ref], limits)
    for ref, header in found.items():
        _remember(ref, header)
    return found


def _read_together(refs: Sequence[Ref], limits: SampleLimits) -> dict[Ref, Header]:
    with _bounded(limits.max_bytes + STACK * min(THREADS, len(refs))):
        return _Reading(refs, limits.seconds).headers()


def _where(found: dict[Ref, Header], kind: type[MediaError]) -> list[Ref]:
    return [ref for ref, header in found.items() if isinstance(header, kind)]


class _Reading:
    """Threads that share files. One that does not come back in time is left behind, and another takes its place."""

    def __init__(self, refs: Sequence[Ref], seconds: float) -> None:
        self.refs, self.seconds = list(dict.fromkeys(refs)), seconds
        self.todo: SimpleQueue[Ref] = SimpleQueue()
        self.done: SimpleQueue[tuple[Ref, Header]] = SimpleQueue()
        self.begun: dict[Ref, float] = {}
        self.found: dict[Ref, Header] = {}
        for ref in self.refs:
            self.todo.put(ref)

    def headers(self) -> dict[Ref, Header]:
        for _ in range(min(THREADS, len(self.refs))):
            self._start()
        while len(self.found) < len(self.refs):
            try:
                ref, header = self.done.get(timeout=POLL)
                self.found.setdefault(ref, header)
            except Empty:
                self._leave_behind()
        return self.found

    def _start(self) -> None:
        Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        with suppress(Empty):
            while True:
                ref = self.todo.get_nowait()
                self.begun[ref] = time.monotonic()
                self.done.put((ref, _header(ref, self.seconds)))

    def _leave_behind(self) -> None:
        """Files whose reader neither ended by itself nor can be ended."""
        for ref, begin in list(self.begun.items()):
            if ref not in self.found and time.monotonic() - begin > self.seconds + POLL:
                self.found[ref] = _given_up(ref, self.seconds)
                self._start()


def _header(ref: Ref, seconds: float) -> Header:
    try:
        with guarded(ref.path, seconds):
            if (known := _known.get(_key(ref))) is not None:
                return known
            if isinstance(ref, ImageRef):
                return probe_image(ref)
            return probe_frames(ref, ref.content) if isinstance(ref.content, FrameList) else probe(ref)
    except MediaError as error:
        return error


def _given_up(ref: Ref, seconds: float) -> Header:
    try:
        with guarded(ref.path, seconds):
            raise SampleTimeout
    except MediaError as error:
        return error


def _remember(ref: Ref, header: Header) -> None:
    if len(_known) >= REMEMBERED:
        _known.clear()
    if not isinstance(ref.content, bytes | FrameList):  # whose files are many
        _known[_key(ref)] = header


def _key(ref: Ref) -> tuple[Ref, str]:
    return ref, "" if isinstance(ref.content, bytes) else repr(stat(ref.path))


@contextmanager
def _bounded(room: int) -> Iterator[None]:
    """No memory is given to this process beyond so many bytes more than it has: libraries say so, and go on."""
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status").read_text()
    now = 1024 * int(status.partition("VmData:")[2].split()[0])
    limit = now + room if before[1] == resource.RLIM_INFINITY else min(now + room, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@lru_cache(1 << 16)  # cleared when an index is begun
def stat(file: str) -> list[int] | None:
    """Size and time of change."""
    try:
        found = Path(file).stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    return [found.st_size, found.st_mtime_ns]
