"""A checkpoint that a framework trained on rates from U(0, .9), next to a real vLLM that serves it."""

from __future__ import annotations

import shutil
from typing import Any

from evs.policy import load_policy
from scripts import check_serving
from scripts.bench.peers.frameworks import Framework, Job
from scripts.bench.peers.jobs import run_to_end
from scripts.bench.processes import reason
from scripts.serving.compare import summary


def compare_with_vllm(framework: Framework, job: Job, vllm_python: str) -> dict[str, Any]:
    """The cells of check_serving.py's table. ValueError without a checkpoint, and if it is not served as trained."""
    log = run_to_end(framework, job, {})
    configs = sorted((job.folder / "out").rglob(f"checkpoint-{job.steps + 1}/config.json"))
    if not configs:
        raise ValueError(reason(log))
    checkpoint = str(configs[0].parent)
    policy = load_policy(checkpoint)
    if policy is None or policy.rates.get("name") != "Uniform":
        raise ValueError(f"evs.json of its checkpoint has rates={policy and policy.rates}")
    options = check_serving.Options(checkpoint, vllm_python)
    verdicts = check_serving.check(options)
    if problem := summary(list(verdicts.values()), options.tolerance):
        raise ValueError(f"check_serving.py: {problem}")
    shutil.rmtree(job.folder)
    return {"cells": {f"{case} at {rate:g}": verdict.text for (_, case, rate, _), verdict in verdicts.items()}}
