"""Reads headers of media in parallel, each within the time limit of a sample and all within its memory limit."""

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

THREADS = 16  # files open at the same time
STACK = 16 << 20  # bytes of memory per thread, before it reads anything
POLL = 0.5  # longest interval in seconds between checks for files over their time limit
CACHE_SIZE = 1 << 14

Ref: TypeAlias = VideoRef | ImageRef
Header: TypeAlias = VideoInfo | tuple[int, int] | MediaError

_cache: dict[tuple[Ref, str], Header] = {}  # shared by the chunks that a worker builds


def read_headers(refs: Sequence[Ref], limits: SampleLimits) -> dict[Ref, Header]:
    """The header of each medium, or the MediaError that makes it unusable."""
    headers = _read_together(refs, limits)
    headers |= _read_together(_failed(headers, OutOfTime), limits)  # retried, because a disk may have been busy
    for ref in _failed(headers, OutOfMemory):  # retried alone: another file may have used the memory
        headers |= _read_together([ref], limits)
    for ref, header in headers.items():
        _remember(ref, header)
    return headers


def _read_together(refs: Sequence[Ref], limits: SampleLimits) -> dict[Ref, Header]:
    with _bounded(limits.max_bytes + STACK * min(THREADS, len(refs))):
        return _HeaderReader(refs, limits.seconds).headers()


def _failed(headers: dict[Ref, Header], kind: type[MediaError]) -> list[Ref]:
    return [ref for ref, header in headers.items() if isinstance(header, kind)]


class _HeaderReader:
    """A pool of threads. A thread that exceeds the time limit is abandoned and replaced."""

    def __init__(self, refs: Sequence[Ref], seconds: float) -> None:
        self.refs, self.seconds = list(dict.fromkeys(refs)), seconds
        self.queue: SimpleQueue[Ref] = SimpleQueue()
        self.done: SimpleQueue[tuple[Ref, Header]] = SimpleQueue()
        self.started: dict[Ref, float] = {}
        self.results: dict[Ref, Header] = {}
        for ref in self.refs:
            self.queue.put(ref)

    def headers(self) -> dict[Ref, Header]:
        for _ in range(min(THREADS, len(self.refs))):
            self._start()
        while len(self.results) < len(self.refs):
            try:
                ref, header = self.done.get(timeout=POLL)
                self.results.setdefault(ref, header)
            except Empty:
                self._replace_overdue()
        return self.results

    def _start(self) -> None:
        Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        with suppress(Empty):
            while True:
                ref = self.queue.get_nowait()
                self.started[ref] = time.monotonic()
                self.done.put((ref, _header(ref, self.seconds)))

    def _replace_overdue(self) -> None:
        """Give up on files whose thread is overdue, since a thread cannot be killed."""
        for ref, begin in list(self.started.items()):
            if ref not in self.results and time.monotonic() - begin > self.seconds + POLL:
                self.results[ref] = _timeout_error(ref, self.seconds)
                self._start()


def _header(ref: Ref, seconds: float) -> Header:
    try:
        with guarded(ref.path, seconds):
            if (header := _cache.get(_key(ref))) is not None:
                return header
            if isinstance(ref, ImageRef):
                return probe_image(ref)
            return probe_frames(ref, ref.content) if isinstance(ref.content, FrameList) else probe(ref)
    except MediaError as error:
        return error


def _timeout_error(ref: Ref, seconds: float) -> Header:
    try:
        with guarded(ref.path, seconds):
            raise SampleTimeout
    except MediaError as error:
        return error


def _remember(ref: Ref, header: Header) -> None:
    if len(_cache) >= CACHE_SIZE:
        _cache.clear()
    if not isinstance(ref.content, bytes | FrameList):  # a frame list has many files
        _cache[_key(ref)] = header


def _key(ref: Ref) -> tuple[Ref, str]:
    return ref, "" if isinstance(ref.content, bytes) else repr(stat(ref.path))


@contextmanager
def _bounded(extra_bytes: int) -> Iterator[None]:
    """Let this process allocate at most `extra_bytes` more (on Linux); then libraries raise MemoryError."""
    if sys.platform != "linux":
        yield
        return
    previous = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status").read_text()
    now = 1024 * int(status.partition("VmData:")[2].split()[0])
    limit = now + extra_bytes if previous[1] == resource.RLIM_INFINITY else min(now + extra_bytes, previous[1])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, previous[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, previous)


@lru_cache(1 << 16)  # cleared when an index build starts
def stat(file: str) -> list[int] | None:
    """[size in bytes, modification time in ns] of a file; None if it does not exist."""
    try:
        status = Path(file).stat()
    except (OSError, ValueError):  # ValueError: the name is invalid
        return None
    return [status.st_size, status.st_mtime_ns]
