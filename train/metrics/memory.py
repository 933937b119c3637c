"""Memory in use: the device's, or on a CPU the process's resident set above what it held when measuring began."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

PROC = Path("/proc/self")


@dataclass(frozen=True)
class Memory:
    """A peak that starts anew where the object was made (`watch`)."""

    device: torch.device
    base: int  # bytes resident then; 0 on a GPU, whose allocator counts for itself

    def peak(self) -> float | None:
        """GiB in use at most since then; None where the system does not report it."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        highest = _status("VmHWM")
        return None if highest is None else (highest - self.base) / 2**30


def watch(device: torch.device) -> Memory:
    """Forget earlier peaks, those of an earlier run of the same process among them."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return Memory(device, 0)
    if (PROC / "clear_refs").exists():
        (PROC / "clear_refs").write_text("5")  # resets VmHWM
    return Memory(device, psutil.Process().memory_info().rss)


def _status(name: str) -> int | None:
    """Bytes of a line of /proc/self/status; None where the system has none (macOS)."""
    if not (PROC / "status").exists():
        return None
    lines = (PROC / "status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
