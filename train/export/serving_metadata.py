"""What servers need to know about an export: policy, processor configuration and command line."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from transformers import AutoConfig, AutoVideoProcessor

from data.media.frames import FramePolicy
from data.media.processor import configuration
from evs.families import spec_of
from evs.policy import FILE, Policy, load_policy, loader_options, package_version, served_method
from train.config import Config, frame_policy
from train.model import load_pretrained
from train.plugins import build, class_name, method_nodes

Options = TypeVar("Options")
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of vLLM's --max-lora-rank
PROCESSOR, VIDEO_PROCESSOR = "processor_config.json", "video_preprocessor_config.json"


def policy_of(config: Config, method: str | None = None) -> Policy:
    """The policy of a run. If the run drew from several methods, `method` selects one; by default it is the first.

    ValueError for a method that the run was not trained on.
    """
    nodes = method_nodes(config.method)
    if "methods" in config.method and method not in (None, *nodes):
        raise ValueError(f"method={method}: the run drew from {', '.join(nodes)}: use one of them")
    trained = build("method", nodes[method] if method in nodes else next(iter(nodes.values())))
    if method not in (None, trained.name):
        raise ValueError(f"method={method}: the run was trained on {trained.name}: remove method=")
    build("rate", config.rate)
    arguments = {key: value for key, value in config.rate.items() if key != "_target_"}
    return Policy(
        scheme=config.model.scheme,
        method=trained.name,
        prune_at=trained.prune_at,
        scorer_dtype=getattr(trained, "dtype", None),
        rates={"name": class_name("rate", config.rate), **arguments},
        package=package_version(),
        **asdict(frame_policy(config.data)),
    )


def frames_of(policy: Policy) -> FramePolicy:
    """The settings of a policy for sampling and resizing frames."""
    return FramePolicy(**{field.name: getattr(policy, field.name) for field in fields(FramePolicy)})


def checkpoint_policy(model: str) -> Policy:
    """The policy in a checkpoint's folder or on the Hub. Without one, the defaults, and a line that says so."""
    policy = load_policy(model)
    if policy is None:
        print(f"{model}: has no {FILE} (exported elsewhere or by an early version): using defaults", file=sys.stderr)
    return policy or Policy()


def filled(options: Options, policy: Policy) -> Options:
    """The options of a command, with values of the policy in place of None."""
    names = {field.name for field in fields(Policy)} & {field.name for field in fields(options)}  # type: ignore[arg-type]
    defaults = {name: getattr(policy, name) for name in names if getattr(options, name) is None}
    return replace(options, **defaults)  # type: ignore[type-var]


def write_processor(folder: Path, policy: Policy) -> None:
    """Write the sizes of the policy to the configuration of the video processor.

    Entries that the model's `vision_config` has too are also written there, because some servers read them there.
    """
    entries = _entries(folder, policy)
    model = json.loads((folder / "config.json").read_text())
    if also := entries.keys() & model["vision_config"].keys():
        model["vision_config"] |= {name: entries[name] for name in also}
        _write(folder / "config.json", model)
    path = folder / PROCESSOR
    if path.is_file() and "video_processor" in (content := json.loads(path.read_text())):
        content["video_processor"] |= entries
        _write(path, content)
        return
    own = load_pretrained(AutoVideoProcessor, str(folder)).to_dict()
    _write(folder / VIDEO_PROCESSOR, own | entries)


def _entries(folder: Path, policy: Policy) -> dict[str, Any]:
    """The entries of the video processor's configuration that follow from the policy."""
    spec = spec_of(load_pretrained(AutoConfig, str(folder)))
    processor = spec.video_processor(load_pretrained(AutoVideoProcessor, str(folder)))
    return configuration(processor, frames_of(policy))


def architecture(model: str | Path) -> str:
    """The architecture of a checkpoint, by the name that servers use; empty if it has none."""
    return (load_pretrained(AutoConfig, str(model)).architectures or [""])[0]


def serve_command(
    policy: Policy,
    model: str = "<this checkpoint>",
    rate: float | None = None,
    architecture: str = "",
    lora: str = "",
) -> str:
    """The shell command that serves a checkpoint as it was trained, with the placeholder `RATE` if `rate` is None.

    It prunes only if servers support the checkpoint's method. `lora` holds the flags for an adapter of `model`. Servers
    read frame sizes from the checkpoint's own files.
    """
    off = "" if policy.scheme == "preserve" else "EVS_VLLM_PLUGIN=0 "
    method, pruning = served_method(policy, architecture), ""
    if method:
        pruning = f" --video-pruning-rate {'RATE' if rate is None else f'{rate:g}'}"
        pruning += "" if method == "evs" else f" --video-pruning-method {method}"  # EVS is the server's default
    return f"{off}vllm serve {model}{lora}{pruning} --media-io-kwargs '{json.dumps(media_io(policy, architecture))}'"


def not_pruned(policy: Policy, architecture: str = "") -> str:
    """One sentence on why the command of a checkpoint does not prune; empty if it does."""
    if served_method(policy, architecture):
        return ""
    place = "" if policy.prune_at == "merger" else f" at prune_at={policy.prune_at}"
    scheme = "" if policy.scheme == "preserve" else f" with scheme={policy.scheme}"
    name = f"{policy.method}{place}{scheme}"
    return f"No server prunes {architecture or 'this model'} by {name}: the command serves it without pruning."


def lora_flags(adapter: Path, base: Path, policy: Policy) -> str:
    """vLLM's flags that serve a LoRA adapter on its base, without the adapter's own path.

    ValueError if vLLM cannot serve the adapter as it was trained.
    """
    settings = json.loads((adapter / "adapter_config.json").read_text())
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        outside = next((name for name in file.keys() if "language_model" not in name), None)  # noqa: SIM118
    rank = next((rank for rank in LORA_RANKS if rank >= settings["r"]), None)
    if (policy.method, policy.prune_at) != ("evs", "merger"):
        reason = f"the base has no {FILE}, which pruning by {policy.method} at {policy.prune_at} needs"
    elif settings.get("use_dora"):
        reason = "vLLM has no DoRA"
    elif rank is None:
        reason = f"its rank {settings['r']} is above vLLM's {LORA_RANKS[-1]}"
    elif outside:
        reason = f"vLLM applies adapters to the language model only, and this one contains {outside}"
    else:
        sizes = _sizes(base, policy)
        processor = f" --mm-processor-kwargs '{json.dumps({'videos_kwargs': sizes})}'" if sizes else ""
        return f" --enable-lora --max-lora-rank {rank}{processor}"
    raise ValueError(f"{reason}: export the run without adapter=true to serve it")


def _sizes(base: Path, policy: Policy) -> dict[str, Any]:
    """The sizes that the policy changes in the base's video processor. Frames are sampled by the loader instead."""
    own, entries = load_pretrained(AutoVideoProcessor, str(base)), _entries(base, policy)
    sampling = {"fps", "num_frames", "min_frames", "max_frames"}
    return {key: value for key, value in entries.items() if key not in sampling and value != own.to_dict().get(key)}


def media_io(policy: Policy, architecture: str = "") -> dict[str, dict[str, Any]]:
    """The value of --media-io-kwargs: frame rate and limits, which servers read from no file."""
    return {"video": loader_options(policy, architecture)}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
