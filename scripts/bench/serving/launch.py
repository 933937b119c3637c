"""The command `vllm` with a clock on every phase of a request. Runs in vLLM's Python, in each of its processes.

python scripts/bench/serving/launch.py serve MODEL ...     keeps $PHASES/PID.json: {phase: [calls, seconds]}

Seconds are wall time without nested phases. On a GPU they are the host's.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[3]))  # last, because the installed evs is the one to measure

from vllm.distributed.device_communicators import shm_broadcast
from vllm.multimodal.media.video import VideoMediaIO
from vllm.multimodal.processing import BaseMultiModalProcessor
from vllm.platforms import current_platform
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as SecondRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner as FirstRunner

from evs.serving.vllm import set_pruning_flag_on_cpu
from scripts.bench.processes import end_with_parent

WRITE_SECONDS, POLL_SECONDS = 0.5, 1e-4
PHASES: dict[str, list[float]] = {}
LOCK, NESTED = threading.Lock(), threading.local()
IN_MODEL = {
    "get_mrope_input_positions": "positions",
    "recompute_mrope_positions": "positions",
    "_postprocess_video_embeds_evs": "selection",
    "forward": "language model",
    "compute_logits": "language model",
}


def timed(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its time added to a phase."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        outer, NESTED.seconds, begin = getattr(NESTED, "seconds", 0.0), 0.0, time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds = time.perf_counter() - begin
            with LOCK:
                total = PHASES.setdefault(phase, [0, 0.0])
                total[0] += 1
                total[1] += seconds - NESTED.seconds
            NESTED.seconds = outer + seconds

    return run


def time_model(load_model: Callable[..., None]) -> Callable[..., None]:
    """A runner's `load_model` that puts the clocks into the model afterwards."""

    @wraps(load_model)
    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        load_model(self, *args, **kwargs)
        for name, phase in IN_MODEL.items():
            object.__setattr__(self.model, name, timed(phase, getattr(self.model, name)))
        tower = self.model.visual
        object.__setattr__(tower, "forward", timed("encoder", tower.forward))

    return run


def write_phases() -> None:
    """Write the totals again and again, as long as the process lives."""
    path, before = Path(os.environ["PHASES"], f"{os.getpid()}.json"), ""
    while True:
        with LOCK:
            text = json.dumps(PHASES)
        if text != before:
            path.with_suffix(".partial").write_text(text)
            path.with_suffix(".partial").replace(path)
            before = text
        time.sleep(WRITE_SECONDS)


def patch() -> None:
    end_with_parent()  # or the engine and its worker outlive a benchmark that is killed
    if current_platform.is_cpu():
        set_pruning_flag_on_cpu()  # without which stock vLLM cannot prune here
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        CPUModelRunner.load_model = time_model(CPUModelRunner.load_model)
        # On a CPU, vLLM's engine polls its worker process in a busy loop, which occupies a second core.
        shm_broadcast.sched_yield = partial(time.sleep, POLL_SECONDS)
    for runner in (FirstRunner, SecondRunner):
        runner.load_model = time_model(runner.load_model)
    for cls, name, phase in (
        (VideoMediaIO, "load_bytes", "decode"),
        (BaseMultiModalProcessor, "apply", "processor"),
        (Scheduler, "schedule", "scheduling"),
        (Scheduler, "update_from_output", "scheduling"),
    ):
        setattr(cls, name, timed(phase, getattr(cls, name)))
    threading.Thread(target=write_phases, daemon=True).start()


patch()  # in processes that are spawned too

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    main()
