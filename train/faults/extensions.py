"""Builds of DeepSpeed's operators that do not hang on the lock file of a killed build, as torch's own would."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from train.faults.watchdog import WATCHDOG

NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "fuse", "glusterfs", "afs", "9p")
POLL = 1.0  # seconds


def build_extension(builder_name: str, limit_s: float) -> None:
    """Build and load an operator of DeepSpeed. Only one process of the run per machine may call this at a time.

    Raise ValueError, naming the lock file, if another build holds it for more than `limit_s` seconds.
    """
    from deepspeed.accelerator import get_accelerator
    from torch.utils import cpp_extension

    builder = get_accelerator().create_op_builder(builder_name)
    if builder is None or not builder.is_compatible(verbose=False):
        return
    WATCHDOG.enter(f"build of DeepSpeed's {builder.name}")
    lock = Path(cpp_extension._get_build_directory(builder.name, False)) / "lock"
    wait_for_lock(lock, limit_s, by_existence=hasattr(cpp_extension, "FileBaton"))
    builder.load(verbose=False)


def wait_for_lock(lock: Path, limit_s: float, *, by_existence: bool) -> None:
    """Return when no build holds torch's lock file. Raise ValueError after `limit_s` seconds.

    `by_existence`: torch waits as long as the file exists, as its older versions do; a dead process's is removed.
    Otherwise torch locks the open file, which the system releases with the process, and the file stays after a build.
    """
    end = time.monotonic() + limit_s
    while lock.exists():
        holders = _holders(lock)
        if not holders and not by_existence:
            return
        if not holders and _is_local(lock):
            print(f"{lock}: removed, a killed build had left it")
            lock.unlink(missing_ok=True)
        elif time.monotonic() > end:
            holder = f"process {holders[0]}" if holders else "a dead process or another machine"
            raise ValueError(f"{lock} is held by {holder}: end that build, then remove the file and start again")
        else:
            time.sleep(POLL)


def _holders(lock: Path) -> list[int]:
    """Ids of this machine's processes that have the file open, as torch keeps it during a build."""
    return [process.pid for process in psutil.process_iter() if _has_open(process, str(lock.resolve()))]


def _has_open(process: psutil.Process, path: str) -> bool:
    try:
        return any(file.path == path for file in process.open_files())
    except psutil.Error:  # the process belongs to another user or has ended
        return False


def _is_local(path: Path) -> bool:
    """True if the file system is local, so that no other machine can hold the lock."""
    mounts = [disk for disk in psutil.disk_partitions(all=True) if path.resolve().is_relative_to(disk.mountpoint)]
    return bool(mounts) and not max(mounts, key=lambda disk: len(disk.mountpoint)).fstype.startswith(NETWORK)
