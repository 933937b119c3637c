"""Builds of DeepSpeed's operators by torch, which waits for ever for a lock file that a killed build has left."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from train.faults.watchdog import WATCHDOG

NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "fuse", "glusterfs", "afs", "9p")
POLL = 1.0  # seconds


def build_extension(builder_name: str, limit_s: float) -> None:
    """Build and load DeepSpeed's operator, on a machine where no other process of the run does so at the same time.

    Raises ValueError, naming the lock file, where another build holds it for more than `limit_s` seconds.
    """
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory

    builder = get_accelerator().create_op_builder(builder_name)
    if builder is None or not builder.is_compatible(verbose=False):
        return
    WATCHDOG.enter(f"build of DeepSpeed's {builder.name}")
    wait_for_lock(Path(_get_build_directory(builder.name, False)) / "lock", limit_s)
    builder.load(verbose=False)


def wait_for_lock(lock: Path, limit_s: float) -> None:
    """Return once no build holds torch's lock file. Removes it if the process that created it is dead.

    Raises ValueError after `limit_s` seconds.
    """
    end = time.monotonic() + limit_s
    while lock.exists():
        holders = _holders(lock)
        if not holders and _is_local(lock):
            print(f"{lock}: left by a build that was killed; removed")
            lock.unlink(missing_ok=True)
        elif time.monotonic() > end:
            held = f"process {holders[0]}" if holders else "a dead process or another machine"
            raise ValueError(f"{lock} is held by {held}: end that build, then remove the file and start again")
        else:
            time.sleep(POLL)


def _holders(lock: Path) -> list[int]:
    """Processes of this machine that have the file open, as torch has while it builds."""
    return [process.pid for process in psutil.process_iter() if _has_open(process, str(lock.resolve()))]


def _has_open(process: psutil.Process, path: str) -> bool:
    try:
        return any(file.path == path for file in process.open_files())
    except psutil.Error:  # of another user, or gone
        return False


def _is_local(path: Path) -> bool:
    """True if the file system is this machine's own, so that processes of no other machine use it."""
    mounts = [each for each in psutil.disk_partitions(all=True) if path.resolve().is_relative_to(each.mountpoint)]
    return bool(mounts) and not max(mounts, key=lambda each: len(each.mountpoint)).fstype.startswith(NETWORK)
