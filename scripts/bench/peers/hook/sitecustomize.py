"""Records what a training process does, whatever framework it runs: Python imports this file at start, from PYTHONPATH.

`Module.__call__`, `Tensor.backward` and the optimizers' hooks write down when the towers, the backward pass and the
optimizer ran and what the model was given. After PEERS_STEPS optimizer steps the record is written to PEERS_RECORD as
JSON and the process ends, so that no framework's saving is waited for. Needs the standard library and torch alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

MODEL = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"
TOWERS = {"Qwen2_5_VisionTransformerPretrainedModel": "vision", "Qwen2_5_VLTextModel": "language_model"}
PACKAGES = ("torch", "transformers", "trl", "llamafactory", "ms-swift")


class AtModel:
    """A finder that finds nothing: it starts the recorder when the model's code is about to be imported."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if name == MODEL:
            finders: list[Any] = sys.meta_path
            finders.remove(AtModel)
            Recorder(int(os.environ["PEERS_STEPS"])).attach()


class Recorder:
    def __init__(self, steps: int) -> None:
        import torch

        self.torch: Any = torch
        self.cuda = torch.cuda.is_available()
        self.left, self.resident = steps, memory("VmRSS")
        self.spans: list[tuple[int, str, Any, Any]] = []  # (step, name, begin, end)
        self.batches: list[dict[str, Any]] = []
        self.ends: list[Any] = []  # of steps
        self.processor: list[float] = []  # seconds of all threads so far, at the same moments
        self.first_step_s = 0.0

    def attach(self) -> None:
        from torch.optim import optimizer

        module, tensor, begins = self.torch.nn.Module, self.torch.Tensor, []
        call, backward = module.__call__, tensor.backward

        def called(this: Any, *args: Any, **kwargs: Any) -> Any:
            name = type(this).__name__
            if name == "UptrainTask":
                self.encode_media(vars(args[0]), this.model.config)
            elif name == "Qwen2_5_VLForConditionalGeneration" and "labels" in kwargs:
                self.encode_media(kwargs, this.config)
            if name not in TOWERS or not this.training:
                return call(this, *args, **kwargs)
            return self.span(TOWERS[name], call, this, *args, **kwargs)

        module.__call__ = called
        tensor.backward = lambda *args, **kwargs: self.span("backward", backward, *args, **kwargs)
        optimizer.register_optimizer_step_pre_hook(lambda *_: begins.append(self.now()))
        optimizer.register_optimizer_step_post_hook(lambda *_: self.step(begins.pop()))

    def now(self) -> Any:
        """Seconds, or an event in the device's queue, which makes nobody wait."""
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

    def encode_media(self, inputs: dict[str, Any], config: Any) -> None:
        """What one micro-batch holds; sums stay on the device until the end."""
        ids = inputs["input_ids_N"] if "input_ids_N" in inputs else inputs["input_ids"]
        labels = inputs["labels_N"] if "labels_N" in inputs else inputs["labels"]
        grids = inputs["video_grid_thw_V3"] if "video_grid_thw_V3" in inputs else inputs["video_grid_thw"]
        self.batches.append(
            {
                "step": len(self.ends),
                "grids": grids,
                "video_tokens": (ids == config.video_token_id).sum(),
                "labels": (labels != -100).sum(),
                "row": list(ids.shape),
            }
        )

    def step(self, begin: Any) -> None:
        end = self.now()
        self.spans.append((len(self.ends), "optimizer", begin, end))
        self.ends.append(end)
        self.processor.append(time.process_time())
        if len(self.ends) == 1:
            self.wait()
            self.first_step_s = time.time() - float(os.environ["PEERS_BEGAN"])
        self.left -= 1
        if self.left == 0:
            self.wait()
            self.write(Path(os.environ["PEERS_RECORD"]))
            os._exit(0)

    def wait(self) -> None:
        if self.cuda:
            self.torch.cuda.synchronize()

    def write(self, path: Path) -> None:
        steps: list[dict[str, Any]] = [{} for _ in self.ends]
        for place, step in enumerate(steps[1:], start=1):
            step["seconds"] = seconds(self.ends[place - 1], self.ends[place])
            step["processor"] = self.processor[place] - self.processor[place - 1]
        for number, name, begin, end in self.spans:
            steps[number][name] = steps[number].get(name, 0.0) + seconds(begin, end)
        peak = self.torch.cuda.max_memory_allocated() if self.cuda else memory("VmHWM") - self.resident
        batches = [{name: plain(value) for name, value in batch.items()} for batch in self.batches]
        record = {"first_step_s": self.first_step_s, "peak_bytes": peak, "versions": versions()}
        path.write_text(json.dumps(record | {"steps": steps, "batches": batches}))


def seconds(begin: Any, end: Any) -> float:
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000


def plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def memory(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if "PEERS_RECORD" in os.environ:
    sys.meta_path.insert(0, AtModel)  # type: ignore[arg-type]
