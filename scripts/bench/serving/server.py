"""A `vllm serve` process: how it is started, and what it tells of its time and caches."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from scripts.bench.processes import background, reason
from scripts.bench.timing import ROOT

LAUNCH = ROOT / "scripts" / "bench" / "serving" / "launch.py"
SETTLE_SECONDS = 1.0  # twice the time after which launch.py writes again
COUNTERS = ("prefix_cache_hits", "prefix_cache_queries", "mm_cache_hits", "mm_cache_queries", "num_preemptions")


@dataclass(frozen=True)
class Variant:
    """A server to measure."""

    name: str
    model: Path
    rate: float
    plugin: bool = True

    def words(self, more: str) -> list[str]:
        """The arguments of the command `vllm`."""
        pruning = ["--video-pruning-rate", f"{self.rate:g}"] if self.rate else []
        video = {"video": {"fps": 2.0, "num_frames": -1}}
        return ["serve", str(self.model), *pruning, "--media-io-kwargs", json.dumps(video), *shlex.split(more)]


@dataclass(frozen=True)
class Server:
    process: Any
    url: str
    phases: Path  # folder of launch.py's files

    def reading(self) -> dict[str, float]:
        """Totals since the start: seconds and calls of every phase, counters of caches, processor seconds."""
        time.sleep(SETTLE_SECONDS)
        totals: dict[str, float] = defaultdict(float)
        for path in self.phases.glob("*.json"):
            for phase, (calls, seconds) in json.loads(path.read_text()).items():
                totals[f"{phase} calls"] += calls
                totals[f"{phase} s"] += seconds
        for name, value in re.findall(
            r"^vllm:(\w+?)(?:_total)?\{.*\} ([\d.e+]+)$", self._get("/metrics"), re.MULTILINE
        ):
            if name in COUNTERS:
                totals[name] += float(value)
        parent = psutil.Process(self.process.pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                totals["busy s"] += sum(process.cpu_times()[:2])
        return dict(totals)

    def wait(self, log: Path, seconds: float) -> None:
        """Wait until it answers. ValueError if it ends before, or takes longer."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise ValueError(f"vllm serve ended with status {self.process.returncode}: {reason(log.read_text())}")
            with suppress(httpx.HTTPError):
                self._get("/health")
                return
            time.sleep(1)
        raise ValueError(f"vllm serve did not answer after {seconds:.0f} s: see {log}")

    def _get(self, path: str) -> str:
        return httpx.get(self.url + path).raise_for_status().text


@contextmanager
def started(variant: Variant, python: str, folder: Path, more: str, log: Path) -> Iterator[Server]:
    """A server that is starting. `folder`: whose files requests may name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*variant.words(more), "--port", str(port), "--allowed-local-media-path", str(folder)]
    print(f"{variant.name}: EVS_VLLM_PLUGIN={int(variant.plugin)} vllm {shlex.join(words)}", flush=True)
    phases = log.with_suffix("")
    phases.mkdir(parents=True, exist_ok=True)
    for old in phases.iterdir():
        old.unlink()
    environment = {
        **{"EVS_VLLM_PLUGIN": str(int(variant.plugin)), "PHASES": str(phases), "HF_HUB_OFFLINE": "1"},
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        **{name: os.environ.get(name, value) for name, value in CPU.items()},
    }
    with background([python, str(LAUNCH), *words], log, ROOT, environment) as process:
        yield Server(process, f"http://127.0.0.1:{port}", phases)


CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # read by CPU builds alone
