"""Checks of a server's configuration against a checkpoint's training, run once when vLLM's configuration is complete.

A server that cannot serve the checkpoint as trained is refused with a ValueError. Other differences from the training
(`evs.json` next to the weights) are one warning, with the flags to give instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from transformers import AutoConfig
from vllm.logger import init_logger
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.platforms import current_platform

from evs.families.servers import GLM, RECOMMENDED_VLLM
from evs.policy import FILE, LOADER, LOADERS, Policy, highest_rate, load_policy, loader_options, served_method

logger = init_logger("vllm.plugins.evs")  # a child of vllm's logger, whose handlers it uses

UNSET = "unset"
LOADER_DEFAULTS = {
    "video_backend": "the family's own",
    "backend": "opencv",
    "frame_recovery": False,
    "do_sample_frames": False,
}
SIZES = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}


@dataclass(frozen=True)
class Mismatch:
    """A value of the server that differs from the training, and the flag that corrects it."""

    name: str
    served: Any
    trained: Any
    remedy: str


class Checked(VerifyAndUpdateConfig):
    """vLLM's hook for the configuration of an architecture, run after vLLM's own hook."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        super().verify_and_update_config(vllm_config)
        policy = policy_of(vllm_config.model_config)
        refuse(vllm_config, policy)
        if policy and (differences := list(mismatches(vllm_config.model_config, policy))):
            text = "; ".join(f"{one.name} {one.served}, trained {one.trained}: {one.remedy}" for one in differences)
            logger.warning("evs: this server differs from the training of %s: %s", vllm_config.model_config.model, text)


def check_at_start(architecture: str, hook: type[VerifyAndUpdateConfig] | None = None) -> None:
    """Run the checks after vLLM's hook for the architecture, or after `hook` if vLLM has none."""
    stock = MODELS_CONFIG_MAP.get(architecture, hook)
    if stock is None:
        MODELS_CONFIG_MAP[architecture] = Checked
    elif not issubclass(stock, Checked):
        MODELS_CONFIG_MAP[architecture] = type("Checked", (Checked, stock), {})


def policy_of(model_config: Any) -> Policy | None:
    """The policy of a server's checkpoint, from its folder or from the Hub; errors as in `evs.policy.load_policy`."""
    return load_policy(model_config.model, model_config.revision)


def refuse(vllm_config: Any, policy: Policy | None) -> None:
    """Raise ValueError for a server that prunes with other positions or masks than in training, or cannot answer."""
    hybrid = "linear_attention" in (getattr(vllm_config.model_config.hf_text_config, "layer_types", None) or ())
    if hybrid and current_platform.is_cpu() and vllm_config.model_config.dtype != torch.bfloat16:
        raise ValueError(
            f"--dtype {str(vllm_config.model_config.dtype).removeprefix('torch.')}: on a CPU vLLM runs gated DeltaNet "
            "layers in bfloat16 alone; use --dtype bfloat16"
        )
    pruning = vllm_config.model_config.multimodal_config.get_video_pruning_spec()
    if pruning is None:
        return
    (architecture,) = vllm_config.model_config.architectures
    if architecture in GLM:
        raise ValueError(
            f"--video-pruning-rate {pruning[1]:g}: vLLM prunes no video of {architecture}; leave the option out"
        )
    if policy and policy.prune_at != "merger":
        _refuse_before_the_tower(vllm_config.model_config, policy)
    stages = vllm_config.parallel_config.pipeline_parallel_size
    if stages > 1:
        raise ValueError(
            f"--pipeline-parallel-size {stages}: with --video-pruning-rate only the first stage receives the positions "
            "of kept tokens; use --tensor-parallel-size instead, or EVS_VLLM_PLUGIN=0 for stock positions"
        )
    method, trained = pruning[0], policy.method if policy else "evs"
    if method not in ("evs", trained):
        raise ValueError(
            f"--video-pruning-method {method}: the checkpoint was trained for {trained}"
            f"{'' if policy else f' as far as known (it has no {FILE})'}; leave the option out, or train with "
            f"method={method}"
        )


def _refuse_before_the_tower(model_config: Any, policy: Policy) -> None:
    """Raise ValueError if the server's tower cannot encode the kept tokens alone, as the checkpoint was trained."""
    place, multimodal = f"this checkpoint was trained with prune_at={policy.prune_at}", model_config.multimodal_config
    (architecture,) = model_config.architectures
    if served_method(policy, architecture) is None:
        raise ValueError(
            f"{place}, but the server's tower of {architecture} sees every token: serve without "
            "--video-pruning-rate, or train with method.prune_at=merger"
        )
    if multimodal.mm_encoder_tp_mode == "data":
        raise ValueError(f"{place}, which --mm-encoder-tp-mode data does not shard: leave it out")
    if multimodal.enable_mm_embeds:
        raise ValueError(f"{place}, which needs a video's pixels, not its rows: leave --enable-mm-embeds out")
    if not model_config._model_info.supports_mm_device_do_normalize:
        raise ValueError(
            f"{place}, which scores uint8 pixels, and this vLLM normalises those of {architecture} before: install "
            f"vLLM {RECOMMENDED_VLLM}"
        )
    if not multimodal.mm_device_do_normalize:
        raise ValueError(f"{place}, which scores pixels before normalisation: leave --mm-device-do-normalize on")


def mismatches(model_config: Any, policy: Policy) -> Iterator[Mismatch]:
    """Differences between the server's command line and the training: tokens, frames, processor and configuration."""
    multimodal = model_config.multimodal_config
    (architecture,) = model_config.architectures
    if pruning := multimodal.get_video_pruning_spec():
        method, rate = pruning
        dtype = str(model_config.dtype).removeprefix("torch.")
        yield from _tokens(method, rate, dtype, policy, architecture)
    yield from _frames(multimodal.media_io_kwargs.get("video", {}), policy, architecture)
    yield from _processor(multimodal.mm_processor_kwargs or {}, model_config)
    yield from _overrides(model_config)


def _tokens(method: str, rate: float, dtype: str, policy: Policy, architecture: str) -> Iterator[Mismatch]:
    served = served_method(policy, architecture)
    if method != served and policy.prune_at == "merger":
        other = f"--video-pruning-method {served}" if served else "leave --video-pruning-rate out: no server prunes so"
        yield Mismatch("method", method, policy.method, other)
    highest = highest_rate(policy.rates)
    if highest is not None and rate > highest:
        yield Mismatch("pruning rate", rate, f"up to {highest:g}", f"--video-pruning-rate {highest:g} or less")
    if policy.scheme != "preserve":
        yield Mismatch("scheme", "preserve", policy.scheme, "EVS_VLLM_PLUGIN=0, for stock positions")
    if policy.scorer_dtype not in (None, dtype):
        yield Mismatch("dtype of scores", dtype, policy.scorer_dtype, f"--dtype {policy.scorer_dtype}")


def _frames(loader: dict[str, Any], policy: Policy, architecture: str) -> Iterator[Mismatch]:
    trained = loader_options(policy, architecture)
    unsaid = {option: default for option, _, default in LOADERS.get(architecture, LOADER)}
    wanted = {name: value for name, value in trained.items() if value != unsaid[name]}
    flag = f"--media-io-kwargs '{json.dumps({'video': wanted})}'" if wanted else "leave it out of --media-io-kwargs"
    for name, value in trained.items():
        if (served := loader.get(name, unsaid[name])) != value:
            yield Mismatch(name, served, value, flag)
    for name in loader.keys() - trained.keys():  # options that training does not know change frames or nothing
        if loader[name] != (value := LOADER_DEFAULTS.get(name, UNSET)):
            yield Mismatch(name, loader[name], value, "leave it out of --media-io-kwargs")
    if policy.times != "server":
        yield Mismatch("frame times", "index / rate", policy.times, "none: train with data.times=server")


def _processor(kwargs: dict[str, Any], model_config: Any) -> Iterator[Mismatch]:
    """Every option that is not as in the checkpoint's own processors, whose configuration an export writes."""
    from vllm.transformers_utils.processor import cached_get_image_processor, cached_get_video_processor

    readers = {"videos_kwargs": cached_get_video_processor, "images_kwargs": cached_get_image_processor}
    flat = {key: value for key, value in kwargs.items() if key not in readers}
    options = {
        **{key: kwargs.get(key) or {} for key in readers},
        "videos_kwargs": flat | kwargs.get("videos_kwargs", {}),
    }
    for scope, reader in readers.items():
        if not options[scope]:
            continue
        own = reader(model_config.model, revision=model_config.revision)
        for name, value, trained in differing(options[scope], own):
            yield Mismatch(name, value, trained, "leave it out of --mm-processor-kwargs")


def differing(options: dict[str, Any], own: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, value, the processor's own) of every option that is not the processor's own."""
    size = {edge: options[name] for name, edge in SIZES.items() if name in options}
    size = dict(options.get("size") or {}) | size
    for edge, value in size.items():
        if value is not None and value != (trained := (own.size or {}).get(edge, UNSET)):
            yield f"size.{edge}", value, trained
    for name in options.keys() - {"size", *SIZES}:
        trained = False if name == "do_sample_frames" else getattr(own, name, UNSET)  # the loader has sampled
        trained = list(trained) if isinstance(trained, tuple) else trained
        if options[name] != trained:
            yield name, options[name], trained


def _overrides(model_config: Any) -> Iterator[Mismatch]:
    """Every value of --hf-overrides that is not the checkpoint's."""
    overrides = model_config.hf_overrides
    if callable(overrides):
        yield Mismatch("hf_overrides", "a function", UNSET, "leave it out")
    elif overrides:
        options = {"revision": model_config.revision, "trust_remote_code": model_config.trust_remote_code}
        own = AutoConfig.from_pretrained(model_config.model, **options).to_dict()
        for name, value in _leaves(overrides):
            trained = reduce(lambda node, key: node.get(key, UNSET) if isinstance(node, dict) else UNSET, name, own)
            if value != trained:
                yield Mismatch(".".join(name), value, trained, "leave it out of --hf-overrides")


def _leaves(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value
