"""Runs under a real vLLM's Python: what a server says to a list of configurations, or to prompts sent together.

python -m tests.serving.driver DIR      reads DIR/job.json and DIR/media.npz, writes DIR/said.json
"""

from __future__ import annotations

import json
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import numpy as np
import torch

from scripts.serving import worker


def start(configurations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per configuration: the error that refuses it, and the plugin's warnings; no engine is started."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    said: list[str] = []
    # A filter, for vLLM takes handlers away whenever it configures logging.
    logging.getLogger("vllm.plugins.evs").addFilter(lambda record: said.append(record.getMessage()) or True)
    out = []
    for configuration in configurations:
        said.clear()
        error = ""
        try:
            EngineArgs(**configuration).create_engine_config()
        except ValueError as refused:
            error = str(refused)
        out.append({"error": error, "warnings": list(said)})
    return out


def requests(job: dict[str, Any], media: Any) -> dict[str, Any]:
    """Rounds of prompts, each round sent at once: a list of answers, or an error in place of one; and the meters."""
    llm = worker.engine(job, job["rate"], job["chunk"])
    if job.get("jitter"):
        llm.apply_model(partial(jitter, scale=job["jitter"]))
    counts: list[dict[str, Any]] = []
    if job.get("count"):
        llm.apply_model(partial(count, counts=counts))
    rounds = [_round(llm, job, names, media) for names in job["rounds"]]
    meters = {metric.name: getattr(metric, "value", None) for metric in llm.get_metrics()} if job["metrics"] else {}
    return {"rounds": rounds, "meters": meters, "counts": counts}


def jitter(model: Any, scale: float) -> None:
    """Add noise to what the vision tower returns, `scale` of its deviation, as kernels do in batches of other sizes."""

    model.visual.register_forward_hook(lambda tower, args, out: out + scale * out.std() * torch.randn_like(out))


def count(model: Any, counts: list[dict[str, Any]]) -> None:
    """Append to `counts` the calls of torch in each call of a hook of the plugin."""
    from torch.overrides import TorchFunctionMode

    class Recorded(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            counts[-1]["calls"].append(function.__name__)
            return function(*args, **(kwargs or {}))

    def counted(name: str, hook: Any, *args: Any, **kwargs: Any) -> Any:
        counts.append({"hook": name, "calls": []})
        with Recorded():
            return hook(*args, **kwargs)

    for name in ("get_mrope_input_positions", "_postprocess_video_embeds_evs", "recompute_mrope_positions"):
        object.__setattr__(model, name, partial(counted, name, getattr(model, name)))


def _round(llm: Any, job: dict[str, Any], names: list[str], media: Any) -> list[dict[str, Any]]:
    cases = [job["cases"][name] for name in names]
    if any(case.get("reload") for case in cases):
        (weights,) = llm.apply_model(lambda model: [(name, one.clone()) for name, one in model.named_parameters()])
        with torch.no_grad():  # which vLLM leaves to its caller
            llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights, "is_checkpoint_format": False})
    if len(cases) == 1:
        return [worker.attempt(llm, cases[0], media, job["steps"], job["top"])]
    return worker.generate(llm, cases, media, job["steps"], job["top"])


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    said = start(job["configurations"]) if "configurations" in job else requests(job, np.load(folder / "media.npz"))
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
