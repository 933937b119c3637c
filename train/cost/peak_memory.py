"""Peak memory: of the GPU, or on a CPU the growth of the process's resident set, without the pages of mapped files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

PROC = Path("/proc/self")


@dataclass(frozen=True)
class Memory:
    """Measures the peak memory since the object was created by `watch`."""

    device: torch.device
    base: int  # resident bytes at the start, without mapped files; 0 on a GPU, whose allocator keeps its own counters

    def peak(self) -> float | None:
        """Peak memory in GiB since the start; None if the system does not report it."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        highest = _status("VmHWM")
        return None if highest is None else (highest - _mapped() - self.base) / 2**30


def watch(device: torch.device) -> Memory:
    """Start measuring peak memory, without the peaks of earlier runs of the same process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return Memory(device, 0)
    if (PROC / "clear_refs").exists():
        (PROC / "clear_refs").write_text("5")  # resets VmHWM
    return Memory(device, psutil.Process().memory_info().rss - _mapped())


def _mapped() -> int:
    """Resident bytes of mapped files, mostly shared libraries."""
    return _status("RssFile") or 0


def _status(name: str) -> int | None:
    """Bytes in a line of /proc/self/status; None on systems without it (macOS)."""
    if not (PROC / "status").exists():
        return None
    lines = (PROC / "status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
