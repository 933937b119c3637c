"""What the plugin does to a request outside the engine: checks of its processor options, and keys of its videos.

A request that would end the engine fails alone, with a ValueError.

vLLM runs the processor of a request outside the engine, where an error affects that request only. The engine itself
would end on patches of another size or on positions beyond its rotary table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig

KEYS = "video_content_keys"  # what the model is given besides the stock fields
FRAMES = ("num_frames", "min_frames", "max_frames")
NUMBERS = ("fps", *FRAMES, "min_pixels", "max_pixels")
MOST_FRAMES = 10**6  # processors make a list of so many numbers before they look at the video
SCOPES = ("videos_kwargs", "images_kwargs")
ALLOWED = f"a request may set {', '.join(NUMBERS)}, size and do_sample_frames"
UNSET = object()


class CheckedRequests:
    """A mixin before a multimodal processor of vLLM."""

    info: Any

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        server = self.info.ctx.get_mm_config().mm_processor_kwargs or {}
        options = {k: v for k, v in inputs.hf_processor_mm_kwargs.items() if k not in server or server[k] != v}
        check_options(options, self.info.get_hf_processor().video_processor if options else None)
        return super().apply(inputs, timing_ctx)  # type: ignore[misc]

    def _postprocess_hf_mm_data(self, mm_inputs: Any, hf_processor_mm_kwargs: Any, processed_data: Any) -> Any:
        data = super()._postprocess_hf_mm_data(mm_inputs, hf_processor_mm_kwargs, processed_data)  # type: ignore[misc]
        config = self.info.get_hf_config()
        if (seconds := data.get("second_per_grid_ts")) is not None:
            per_second = config.vision_config.tokens_per_second
            limit = config.get_text_config().max_position_embeddings
            check_times([float(second) for second in seconds], data["video_grid_thw"].tolist(), per_second, limit)
        content = data.get("pixel_values_videos", data.get("video_embeds"))  # None: encoded by another server
        if content is not None and self.info.ctx.get_mm_config().is_multimodal_pruning_enabled():
            data[KEYS] = content_keys(content, data["video_grid_thw"])
        return data

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> dict[str, Any]:
        stock = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)  # type: ignore[misc]
        return {**stock, KEYS: MultiModalFieldConfig.batched("video", keep_on_cpu=True)}


def content_keys(rows_RC: Tensor, grid_thw_V3: Tensor) -> Tensor:
    """[V, 16] uint8: a digest of the grid and rows of every video. Made here, because the engine would have to wait for
    its device."""
    sizes = grid_thw_V3.prod(-1)
    rows = rows_RC.split((sizes * len(rows_RC) // sizes.sum()).tolist())
    contents = [blake3(repr(grid.tolist()).encode()).update(_bytes(one)) for grid, one in zip(grid_thw_V3, rows)]
    return torch.tensor([list(content.digest(length=16)) for content in contents], dtype=torch.uint8)


def _bytes(rows: Tensor) -> Any:
    return rows.cpu().contiguous().view(torch.uint8).numpy().reshape(-1)


def checked(model: type) -> type:
    """The model class, with the checks of `CheckedRequests` before its own processor."""
    stock = model._processor_factory  # type: ignore[attr-defined]
    processor = type(f"Checked{stock.processor.__name__}", (CheckedRequests, stock.processor), {})
    return MULTIMODAL_REGISTRY.register_processor(processor, info=stock.info, dummy_inputs=stock.dummy_inputs)(model)


def check_options(options: Mapping[str, Any], own: Any) -> None:
    """Raise ValueError for `mm_processor_kwargs` other than positive numbers for frames and sizes.

    Values of `own`, the checkpoint's video processor, are allowed too.
    """
    for name, value in options.items():
        if name in SCOPES and isinstance(value, Mapping):
            check_options(value, own)
        elif name == "size" and isinstance(value, Mapping):
            for edge in value.values():
                _check_number("size", edge)
        elif name in NUMBERS:
            for item in value if isinstance(value, list) else [value]:  # Qwen3-VL takes one per video
                _check_number(name, item)
        elif name == "do_sample_frames" and isinstance(value, bool):
            continue
        elif name in ("size", *SCOPES) or getattr(own, name, UNSET) != value:
            raise ValueError(f"mm_processor_kwargs: {name}={value!r}: leave it out; {ALLOWED}")


def _check_number(name: str, value: Any) -> None:
    most = MOST_FRAMES if name in FRAMES else math.inf
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 < value <= most:
        limit = f" up to {most}" if name in FRAMES else ""
        raise ValueError(f"mm_processor_kwargs: {name}={value!r}: give a positive number{limit}")


def check_times(seconds: list[float], grids_thw: list[list[int]], per_second: float, limit: int) -> None:
    """Raise ValueError for a video with a frame time at or beyond position `limit`."""
    for second, (grids, _, _) in zip(seconds, grids_thw, strict=True):
        last = second * per_second * (grids - 1)
        if not (math.isfinite(second) and second >= 0 and last < limit):
            raise ValueError(
                f"{second:g} seconds between the temporal grids of a video of {grids}: the last one is beyond the "
                f"model's {limit} positions; check fps and the times of the frames"
            )
