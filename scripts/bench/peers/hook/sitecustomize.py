"""Records what a training process does in any framework. Python imports this file at start, from PYTHONPATH.

`Module.__call__`, `Tensor.backward` and the hooks of optimizers record when the towers, the backward pass and the
optimizer ran and which batches the model received. After PEERS_STEPS optimizer steps the record is written to
PEERS_RECORD as JSON and the process ends, without waiting for the framework to save. Needs torch alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODEL = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"
TOWERS = {"Qwen2_5_VisionTransformerPretrainedModel": "vision", "Qwen2_5_VLTextModel": "language_model"}
INPUTS = {"ids": "input_ids", "labels": "labels", "grids": "video_grid_thw"}
OUR_INPUTS = {"ids": "input_ids_N", "labels": "labels_N", "grids": "video_grid_thw_V3"}


class AtModelImport:
    """An import hook that attaches the recorder just before the model's code is imported."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if name == MODEL:
            finders: list[Any] = sys.meta_path
            finders.remove(AtModelImport)
            Recorder(int(os.environ["PEERS_STEPS"])).attach()


class Recorder:
    def __init__(self, steps: int) -> None:
        import torch

        self.torch: Any = torch
        self.cuda = torch.cuda.is_available()
        self.remaining_steps, self.resident = steps, memory("VmRSS")
        self.spans: list[tuple[int, str, Any, Any]] = []  # (step, name, begin, end)
        self.batches: list[dict[str, Any]] = []
        self.ends: list[Any] = []  # of steps
        self.processor: list[float] = []  # seconds of all threads until the end of each step
        self.first_step_s = 0.0

    def attach(self) -> None:
        from torch.optim import optimizer

        module, tensor, begins = self.torch.nn.Module, self.torch.Tensor, []
        call, backward = module.__call__, tensor.backward

        def recorded_call(this: Any, *args: Any, **kwargs: Any) -> Any:
            name = type(this).__name__
            if name in TOWERS and this.training:
                return self.span(TOWERS[name], call, this, *args, **kwargs)
            result = call(this, *args, **kwargs)
            if name == "UptrainTask":
                loss = result.loss_sum / result.targets
                self.record_batch(vars(args[0]), OUR_INPUTS, this.model.config.video_token_id, loss)
            elif name == "Qwen2_5_VLForConditionalGeneration" and "labels" in kwargs:
                self.record_batch(kwargs, INPUTS, this.config.video_token_id, result.loss)
            return result

        module.__call__ = recorded_call
        tensor.backward = lambda *args, **kwargs: self.span("backward", backward, *args, **kwargs)
        optimizer.register_optimizer_step_pre_hook(lambda *_: begins.append(self.now()))
        optimizer.register_optimizer_step_post_hook(lambda *_: self.end_step(begins.pop()))

    def now(self) -> Any:
        """Seconds, or on a GPU an event, for which nothing waits."""
        if not self.cuda:
            return time.perf_counter()
        event = self.torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def span(self, name: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        begin = self.now()
        result = function(*args, **kwargs)
        self.spans.append((len(self.ends), name, begin, self.now()))
        return result

    def record_batch(self, inputs: dict[str, Any], names: dict[str, str], video_token: int, loss: Any) -> None:
        """What one micro-batch holds. Sums stay on the device until the end."""
        ids, labels, grids = (inputs[name] for name in names.values())
        sums = {"video_tokens": (ids == video_token).sum(), "labels": (labels != -100).sum()}
        self.batches.append({"step": len(self.ends), "grids": grids, "loss": loss.detach(), **sums})

    def end_step(self, optimizer_begin: Any) -> None:
        end = self.now()
        self.spans.append((len(self.ends), "optimizer", optimizer_begin, end))
        self.ends.append(end)
        self.processor.append(time.process_time())
        self.remaining_steps -= 1
        if self.cuda and (len(self.ends) == 1 or self.remaining_steps == 0):
            self.torch.cuda.synchronize()
        if len(self.ends) == 1:
            self.first_step_s = time.time() - float(os.environ["PEERS_BEGAN"])
        if self.remaining_steps == 0:
            Path(os.environ["PEERS_RECORD"]).write_text(json.dumps(self.record()))
            os._exit(0)

    def record(self) -> dict[str, Any]:
        steps: list[dict[str, Any]] = [{} for _ in self.ends]
        for i, step in enumerate(steps[1:], start=1):
            step["seconds"] = seconds(self.ends[i - 1], self.ends[i])
            step["processor"] = self.processor[i] - self.processor[i - 1]
        for i, name, begin, end in self.spans:
            steps[i][name] = steps[i].get(name, 0.0) + seconds(begin, end)
        return {
            "first_step_s": self.first_step_s,
            "peak_bytes": self.torch.cuda.max_memory_allocated() if self.cuda else memory("VmHWM") - self.resident,
            "versions": {name: version(name) for name in ("torch", "transformers")},
            "steps": steps,
            "batches": [
                {key: value if key == "step" else value.tolist() for key, value in batch.items()}
                for batch in self.batches
            ],
        }


def seconds(begin: Any, end: Any) -> float:
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000


def memory(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if "PEERS_RECORD" in os.environ:
    sys.meta_path.insert(0, AtModelImport)  # type: ignore[arg-type]
