"""The server's side of check_serving: answers its prompts with a real vLLM, in vLLM's own Python.

python scripts/serving/worker.py DIR     reads DIR/request.json and DIR/media.npz, writes DIR/answers.json
"""

from __future__ import annotations

import gc
import json
import os
import sys
from functools import wraps
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # so that errors of the engine are raised here

import numpy as np
import torch
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[2]))  # last, because the installed evs is the one to check

from scripts.serving.loading import messages, record_loader, seen, unwatch_tower, watch_tower

# Functions that compute keep masks, in stock vLLM and in the plugin.
MASKS = ("compute_retention_mask", "vidcom2_compute_retention_mask", "select")


def engine(request: dict[str, Any], rate: float, chunk: int) -> Any:
    from vllm import LLM

    options = {
        "dtype": request["dtype"],
        "enforce_eager": True,
        "video_pruning_rate": rate or None,
        "max_model_len": request["max_model_len"],
        "max_num_batched_tokens": chunk or max(request["max_model_len"], 2048),
        "max_num_seqs": 4,
        "limit_mm_per_prompt": {"image": 1, "video": 2},
        "enable_prefix_caching": False,
        "skip_mm_profiling": True,
        "seed": 0,
    }
    return LLM(request["model"], **{**options, **request.get("engine", {})})


def answer(llm: Any, case: dict[str, Any], media: Any, steps: int, top: int) -> dict[str, Any]:
    """The result of `generate` for one prompt, the positions of its tokens, and the kept tokens of each video."""
    llm.llm_engine.reset_encoder_cache()  # or a video encoded before is not pruned again
    if not case.get("remembered"):
        llm.llm_engine.reset_mm_cache()  # or the processor is skipped for a repeated prompt
        llm.apply_model(forget_masks)
    llm.apply_model(watch)
    try:
        got = _generated(llm, case, media, steps, top)
    finally:
        (watched,) = llm.apply_model(unwatch)
    return got | watched


def _generated(llm: Any, case: dict[str, Any], media: Any, steps: int, top: int) -> dict[str, Any]:
    """The result of `generate` for one prompt; for a file also what the server read of it."""
    if "url" not in case:
        return generate(llm, [case], media, steps, top)[0]
    llm.apply_model(watch_tower)
    with record_loader() as loads:
        try:
            (got,) = generate(llm, [case], media, steps, top)
        except ValueError:
            if not loads or loads[0]["frames_indices"]:
                raise
            return {"unread": "its loader decodes no frame of the file; re-encode it for serving"}
        finally:
            (calls,) = llm.apply_model(unwatch_tower)
    return got | {"seen": seen(loads[0], calls, case, media)}


def generate(llm: Any, cases: list[dict[str, Any]], media: Any, steps: int, top: int) -> list[dict[str, Any]]:
    """For each prompt its tokens after pruning, the greedy answer and the top log-probabilities of every step."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=steps, logprobs=top, ignore_eos=True)
    if "url" in cases[0]:
        options = {"enable_thinking": False}  # as in training
        chats = [messages(case) for case in cases]
        outs = llm.chat(chats, sampling, use_tqdm=False, chat_template_kwargs=options)
    else:
        outs = llm.generate([prompt_of(case, media) for case in cases], sampling, use_tqdm=False)
    return [
        {
            "prompt_ids": list(out.prompt_token_ids),
            "tokens": list(out.outputs[0].token_ids),
            "logprobs": [{t: float(p.logprob) for t, p in step.items()} for step in out.outputs[0].logprobs],
        }
        for out in outs
    ]


def prompt_of(case: dict[str, Any], media: Any) -> dict[str, Any]:
    """A case as a prompt of vLLM, with videos and images or with embeddings of videos (`embeds`)."""
    prompt: dict[str, Any] = {
        "prompt": case["prompt"],
        "multi_modal_data": {
            "video": [(media[video["key"]], video["metadata"]) for video in case["videos"]],
            "image": [Image.fromarray(media[key]) for key in case["images"]],
        },
    }
    if rows := case.get("embeds"):
        grids = torch.tensor(rows["grids"])
        prompt["multi_modal_data"]["video"] = {
            "video_embeds": torch.from_numpy(media[rows["key"]]),
            "video_grid_thw": grids,
        }
    prompt["multi_modal_data"] = {kind: items for kind, items in prompt["multi_modal_data"].items() if items}
    return prompt | {"mm_processor_kwargs": case.get("processor", {})}


def forget_masks(model: Any) -> None:
    """Clear the plugin's cache of masks, so that every video is scored again."""
    if hasattr(model, "kept_masks"):
        model.kept_masks.clear()


def watch(model: Any) -> None:
    """Record the [3, tokens] positions of every forward pass and the kept tokens of every video.

    A model without rotary positions receives [tokens] and does not read them.
    """
    positions: list[list[list[int]]] = []
    kept: list[torch.Tensor] = []

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["positions"].ndim == 2:
            positions.append(kwargs["positions"].tolist())

    def recorded(compute_mask: Any) -> Any:
        @wraps(compute_mask)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            kept.append(mask := compute_mask(*args, **kwargs))
            return mask

        return wrapper

    namespaces = [vars(sys.modules[cls.__module__]) for cls in type(model).__mro__]
    model.watching = model.register_forward_pre_hook(hook, with_kwargs=True)
    model.watched = positions, kept
    model.masks = [(names, name, names[name]) for names in namespaces for name in MASKS if name in names]
    for names, name, compute_mask in model.masks:
        names[name] = recorded(compute_mask)


def unwatch(model: Any) -> dict[str, Any]:
    model.watching.remove()
    for names, name, compute_mask in reversed(model.masks):
        names[name] = compute_mask
    positions, kept = model.watched
    rows = [[p for step in positions for p in step[row]] for row in range(3)]
    tokens = [mask.flatten().nonzero().squeeze(1).tolist() for mask in kept]
    return {"kept": tokens, **({"positions": rows} if positions else {})}


def attempt(llm: Any, case: dict[str, Any], media: Any, steps: int, top: int) -> dict[str, Any]:
    """`answer`, or the message of the server: a `limit` of the server, or an `error`, after which it may not
    continue."""
    from vllm.exceptions import VLLMValidationError

    try:
        return answer(llm, case, media, steps, top)
    except VLLMValidationError as error:  # refused before it reached the engine
        return {"limit": str(error).splitlines()[0]}
    except Exception as error:  # whatever the engine raises is the result
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def answer_until_error(
    request: dict[str, Any], run: dict[str, Any], cases: list[dict[str, Any]], media: Any
) -> list[dict[str, Any]]:
    """The answers to `cases` up to the first on which the engine fails."""
    llm = engine(request, **run)
    answers = []
    for case in cases:
        got = attempt(llm, case, media, request["steps"], request["top"])
        answers.append({**run, "case": case["name"], **got})
        if "error" in got:
            break
    return answers


def clean_up() -> None:
    """Free what the last engine left in this process, once nothing refers to it."""
    from vllm.distributed import cleanup_dist_env_and_memory

    gc.collect()
    cleanup_dist_env_and_memory()


def check_plugin(wanted: bool) -> None:
    if wanted:
        if not any(plugin.name == "evs" for plugin in entry_points(group="vllm.general_plugins")):
            raise SystemExit(f"error: {sys.executable} has no evs plugin: run its pip install on this repository")
        return
    # Without the plugin the CPU runner lacks a flag that every GPU runner has; this is not to be compared.
    from vllm.platforms import current_platform

    from evs.serving.vllm import set_pruning_flag_on_cpu

    if current_platform.is_cpu():
        set_pruning_flag_on_cpu()


def check_architecture(model: str) -> None:
    """Exit with an error if vLLM, or the transformers installed with it, lacks the checkpoint's architecture."""
    from transformers import CONFIG_MAPPING, PretrainedConfig, __version__
    from vllm import ModelRegistry
    from vllm import __version__ as version

    config = PretrainedConfig.get_config_dict(model)[0]
    architectures, family = config.get("architectures") or [], config["model_type"]
    supported = set(architectures) & set(ModelRegistry.get_supported_archs())
    missing = "" if supported else f"vLLM {version} has no {architectures[0]}"
    if missing or family not in CONFIG_MAPPING:
        raise SystemExit(
            f"error: {missing or f'transformers {__version__} of vLLM {version} has no {family}'}: give "
            "vllm_python= of an environment with a newer one, built by scripts/serving/vllm_env.sh DIR VERSION"
        )


def main(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text())
    media = np.load(folder / "media.npz")
    check_architecture(request["model"])
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
