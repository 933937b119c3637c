"""What a server must be to keep a checkpoint's promise, checked once, where vLLM has its configuration complete.

What the plugin cannot serve as trained is refused with a ValueError; what the server only sees otherwise than in
training (`evs.json` beside the weights) is one warning with the flags to give instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.platforms import current_platform

from evs.policy import FILE, LOADER, LOADERS, Policy, loader_options, read
from evs.serving.vllm import SUPPORTED

logger = init_logger("vllm.plugins.evs")  # below vllm's own, whose handlers it takes

BEFORE_THE_TOWER = (
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
)
SIZES = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}


@dataclass(frozen=True)
class Mismatch:
    """A value of the server that is not the trained one, and what to say to the server instead."""

    name: str
    served: Any
    trained: Any
    remedy: str


class Checked(VerifyAndUpdateConfig):
    """vLLM's hook for one architecture's configuration, after its own where it has one."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        super().verify_and_update_config(vllm_config)
        policy = policy_of(vllm_config.model_config)
        refuse(vllm_config, policy)
        if policy and (found := list(departures(vllm_config.model_config, policy))):
            each = "; ".join(f"{one.name} {one.served}, trained {one.trained}: {one.remedy}" for one in found)
            logger.warning("evs: this server differs from the training of %s: %s", vllm_config.model_config.model, each)


def check_at_start(architecture: str, hook: type[VerifyAndUpdateConfig] | None = None) -> None:
    """Run the checks behind vLLM's hook for the architecture, or behind `hook` where vLLM has none."""
    stock = MODELS_CONFIG_MAP.get(architecture, hook)
    if stock is None:
        MODELS_CONFIG_MAP[architecture] = Checked
    elif not issubclass(stock, Checked):
        MODELS_CONFIG_MAP[architecture] = type("Checked", (Checked, stock), {})


def policy_of(model_config: Any) -> Policy | None:
    """The `evs.json` of a local folder or of a repository on the Hub; None where there is none."""
    if Path(model_config.model).is_dir():
        return read(model_config.model)
    from huggingface_hub import hf_hub_download

    try:
        return read(Path(hf_hub_download(model_config.model, FILE, revision=model_config.revision)).parent)
    except OSError:  # not there, or not to be reached: the weights will say so
        return None


def refuse(vllm_config: Any, policy: Policy | None) -> None:
    """ValueError for a pruning server that would answer at wrong positions or with a mask that training never saw, and
    for one that cannot answer at all."""
    hybrid = "linear_attention" in (getattr(vllm_config.model_config.hf_text_config, "layer_types", None) or ())
    if hybrid and current_platform.is_cpu() and vllm_config.model_config.dtype != torch.bfloat16:
        raise ValueError(
            f"--dtype {str(vllm_config.model_config.dtype).removeprefix('torch.')}: on a CPU vLLM runs gated DeltaNet "
            "layers in bfloat16 alone; use --dtype bfloat16"
        )
    pruning = vllm_config.model_config.multimodal_config.get_video_pruning_spec()
    if pruning is None:
        return
    if policy and policy.prune_at != "merger":
        _refuse_before_the_tower(vllm_config.model_config, policy)
    stages = vllm_config.parallel_config.pipeline_parallel_size
    if stages > 1:
        raise ValueError(
            f"--pipeline-parallel-size {stages}: with --video-pruning-rate only the first stage learns the positions "
            "of what is left; use --tensor-parallel-size instead, or EVS_VLLM_PLUGIN=0 for stock positions"
        )
    method, trained = pruning[0], policy.method if policy else "evs"
    if method not in ("evs", trained):
        raise ValueError(
            f"--video-pruning-method {method}: the checkpoint was trained for {trained}"
            f"{'' if policy else f' as far as known (it has no {FILE})'}; leave the option out, or train with "
            f"method={method}"
        )


def _refuse_before_the_tower(model_config: Any, policy: Policy) -> None:
    """ValueError where the server's tower cannot be given the survivors that the checkpoint has learned from."""
    place, multimodal = f"this checkpoint was trained with prune_at={policy.prune_at}", model_config.multimodal_config
    (architecture,) = model_config.architectures
    if policy.prune_at != "input" or policy.method != "pixel_delta" or architecture not in BEFORE_THE_TOWER:
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
            f"vLLM {SUPPORTED[-1]}"
        )
    if not multimodal.mm_device_do_normalize:
        raise ValueError(f"{place}, which scores pixels before normalisation: leave --mm-device-do-normalize on")


def departures(model_config: Any, policy: Policy) -> Iterator[Mismatch]:
    multimodal = model_config.multimodal_config
    if pruning := multimodal.get_video_pruning_spec():
        yield from _tokens(pruning[0], str(model_config.dtype).removeprefix("torch."), policy)
    (architecture,) = model_config.architectures
    yield from _frames(multimodal.media_io_kwargs.get("video", {}), policy, architecture)
    kwargs = multimodal.mm_processor_kwargs or {}
    yield from _processor({**kwargs, **kwargs.get("videos_kwargs", {})}, model_config, policy)


def _tokens(method: str, dtype: str, policy: Policy) -> Iterator[Mismatch]:
    if method != policy.method and policy.prune_at == "merger":
        yield Mismatch("method", method, policy.method, f"--video-pruning-method {policy.method}")
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
    if "video_backend" in loader:
        yield Mismatch("video_backend", loader["video_backend"], "the family's own", "leave it out")
    if policy.times != "server":
        yield Mismatch("frame times", "index / rate", policy.times, "none: train with data.times=server")


def _processor(kwargs: dict[str, Any], model_config: Any, policy: Policy) -> Iterator[Mismatch]:
    if kwargs.get("do_sample_frames"):
        yield Mismatch("do_sample_frames", True, False, "leave it out of --mm-processor-kwargs")
    size = kwargs.get("size") or {}
    given = {edge: kwargs.get(pixels, size.get(edge)) for pixels, edge in SIZES.items()}
    if not any(given.values()):
        return
    from vllm.transformers_utils.processor import cached_get_video_processor

    own = cached_get_video_processor(model_config.model, revision=model_config.revision).size
    for edge, value in given.items():
        if value is not None and value != own[edge]:
            yield Mismatch(f"size.{edge}", value, own[edge], "leave it out of --mm-processor-kwargs")
