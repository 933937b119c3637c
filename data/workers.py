"""How worker processes start, and how they end."""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util  # registers its own function at exit, which must run after _kill_workers
import resource
import signal
import sys

# Forked workers share the samples and start at once. They use no device and a single torch thread, so they never wait
# for a lock of the parent's thread pools. On other systems than Linux, system libraries do not survive a fork.
START = "fork" if sys.platform == "linux" else "spawn"


def ignore_signals(_: int) -> None:
    """Ignore signals in a worker. Schedulers signal all processes of a job, but a run that saves on a signal needs its
    workers until it exits, which ends them too."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _kill_workers() -> None:
    """Kill the workers that are still alive when the process exits. An error may keep their loader from ending them,
    and multiprocessing would wait forever for processes that ignore its SIGTERM."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def allow_open_files() -> None:
    """Raise the soft limit on open files to the hard one: each tensor in transit from a worker is an open file, and the
    usual 1024 are too few for 8 workers with 16 micro-batches per step."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
