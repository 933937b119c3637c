"""The server's side of check_serving: answers its prompts with a real vLLM, under vLLM's own Python.

python scripts/serving/worker.py DIR     reads DIR/request.json and DIR/media.npz, writes DIR/answers.json
"""

from __future__ import annotations

import gc
import json
import os
import sys
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # so that an engine's error is seen here

import numpy as np


def engine(request: dict[str, Any], rate: float, chunk: int) -> Any:
    from vllm import LLM

    return LLM(
        request["model"],
        dtype=request["dtype"],
        enforce_eager=True,
        video_pruning_rate=rate or None,
        max_model_len=request["max_model_len"],
        max_num_batched_tokens=chunk or max(request["max_model_len"], 2048),
        max_num_seqs=4,
        limit_mm_per_prompt={"image": 1, "video": 2},
        enable_prefix_caching=False,
        skip_mm_profiling=True,
        seed=0,
    )


def answer(llm: Any, case: dict[str, Any], media: Any, steps: int, top: int) -> dict[str, Any]:
    """The prompt's tokens as the server sees them, its greedy answer and the top logprobs of every step."""
    from vllm import SamplingParams

    prompt = {
        "prompt": case["prompt"],
        "multi_modal_data": {
            "video": [(media[video["key"]], video["metadata"]) for video in case["videos"]],
            "image": [media[key] for key in case["images"]],
        },
    }
    prompt["multi_modal_data"] = {kind: items for kind, items in prompt["multi_modal_data"].items() if items}
    sampling = SamplingParams(temperature=0, max_tokens=steps, logprobs=top, ignore_eos=True)
    seen: list[list[list[int]]] = []
    llm.apply_model(partial(watch_positions, seen=seen))
    (out,) = llm.generate([prompt], sampling, use_tqdm=False)
    llm.apply_model(unwatch)
    return {
        "prompt_ids": list(out.prompt_token_ids),
        "tokens": list(out.outputs[0].token_ids),
        "positions": [[p for step in seen for p in step[row]] for row in range(3)],
        "logprobs": [{t: float(p.logprob) for t, p in step.items()} for step in out.outputs[0].logprobs],
    }


def watch_positions(model: Any, seen: list[list[list[int]]]) -> None:
    """Append to `seen` the [3, tokens] positions of every forward pass of the model."""

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["positions"].tolist())

    model.watching = model.register_forward_pre_hook(hook, with_kwargs=True)


def unwatch(model: Any) -> None:
    model.watching.remove()


def answer_until_error(
    request: dict[str, Any], run: dict[str, Any], cases: list[dict[str, Any]], media: Any
) -> list[dict[str, Any]]:
    """The answers to `cases` up to the first on which the engine fails, for it does not outlive its errors."""
    llm = engine(request, **run)
    answers = []
    for case in cases:
        try:
            got = answer(llm, case, media, request["steps"], request["top"])
        except Exception as error:  # whatever the engine raises is the finding
            got = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.append({**run, "case": case["name"], **got})
        if "error" in got:
            break
    return answers


def clean_up() -> None:
    """What the last engine left in this process, once no name holds it."""
    from vllm.distributed import cleanup_dist_env_and_memory

    gc.collect()
    cleanup_dist_env_and_memory()


def check_plugin(wanted: bool) -> None:
    if wanted:
        if not any(plugin.name == "evs" for plugin in entry_points(group="vllm.general_plugins")):
            raise SystemExit(f"error: {sys.executable} has no evs plugin: pip install --no-deps this package there")
        return
    # Without the plugin the CPU runner lacks the flag that every GPU runner has; that is no part of the comparison.
    from vllm.platforms import current_platform

    from evs.serving.vllm import set_pruning_flag_on_cpu

    if current_platform.is_cpu():
        set_pruning_flag_on_cpu()


def main(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text())
    media = np.load(folder / "media.npz")
    check_plugin(request["plugin"])
    answers: list[dict[str, Any]] = []
    for run in request["runs"]:
        cases = request["cases"]
        while cases:
            got = answer_until_error(request, run, cases, media)
            clean_up()
            answers += got
            cases = cases[len(got) :]
    (folder / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
