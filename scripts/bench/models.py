"""Qwen2.5-VL models of named shapes with random weights, and batches of synthetic clips for them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from data.types import IGNORE, Batch
from evs import FrameDelta, Grid, keep_count
from evs.families import adapter_for
from evs.families.mrope.fast_tower import normalised
from evs.methods import Method
from evs.methods.pixels import PixelDelta
from train.cost.operations import Work, batch_work, before_tower
from train.task import UptrainTask

ROPE = {"rope_type": "default", "rope_theta": 1e6}
SPECIAL: dict[str, Any] = {
    "vision_start_token_id": 1,
    "vision_end_token_id": 2,
    "image_token_id": 3,
    "video_token_id": 4,
}
WORDS = 8  # ids from here on are text


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen2.5-VL, and of the batch on which it is timed."""

    text: tuple[int, int, int, int, int]  # layers, width, heads, key-value heads, MLP
    vision: tuple[int, int, int, int]  # layers, width, heads, MLP
    vocabulary: int = 151_936
    tied: bool = False
    clips: int = 2
    grid: tuple[int, int, int] = (16, 8, 8)  # merged tokens: 1,024 a clip


SHAPES = {
    "tiny": Shape((4, 256, 4, 2, 512), (4, 128, 4, 256), vocabulary=2048, grid=(8, 4, 4)),
    "small": Shape((8, 768, 12, 2, 4096), (8, 320, 4, 560)),
    # With the 3B's operations of the tower per operation of the language model, .87 for a clip of 960 tokens.
    "serving": Shape((12, 512, 8, 2, 2752), (4, 512, 8, 1320), vocabulary=4096, grid=(12, 8, 10)),
    "qwen2_5_vl_3b": Shape((36, 2048, 16, 2, 11008), (32, 1280, 16, 3420), tied=True, grid=(32, 16, 16)),
    "qwen2_5_vl_7b": Shape((28, 3584, 28, 4, 18944), (32, 1280, 16, 3420), grid=(32, 16, 16)),
}
PLACES: dict[str, Method] = {"after": FrameDelta("bfloat16"), "before": PixelDelta("input")}  # the tower
KERNELS = {  # the module of each attention implementation that is installed separately
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn.cute",
}
PROMPT, ANSWER = 32, 32  # text tokens of every sample; those of the answer are labelled


def build_shape(name: str) -> Shape:
    if name not in SHAPES:
        raise ValueError(f"shape={name} is unknown: use one of {', '.join(SHAPES)}")
    return SHAPES[name]


def missing_kernel(attention: str, gpu: bool = True) -> str | None:
    """Why this machine cannot train with an attention implementation, in one line; None if it can."""
    if attention in (*KERNELS, "flex_attention") and not gpu:
        return f"{attention} trains on a CUDA device only"
    try:
        installed = attention not in KERNELS or find_spec(KERNELS[attention]) is not None
    except ModuleNotFoundError:  # the package that would hold the module
        installed = False
    return None if installed else f"{attention} needs the package {KERNELS[attention]}, which is not installed"


def model_config(shape: Shape) -> Qwen2_5_VLConfig:
    layers, width, heads, kv, mlp = shape.text
    depth, vision_width, vision_heads, vision_mlp = shape.vision
    half = width // heads // 2
    sections = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    return Qwen2_5_VLConfig(
        text_config={
            **{"vocab_size": shape.vocabulary, "hidden_size": width, "intermediate_size": mlp},
            **{"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv},
            **{"rope_parameters": {**ROPE, "mrope_section": sections}, "max_position_embeddings": 131072},
            **{"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": shape.tied},
        },
        vision_config={
            **{"depth": depth, "hidden_size": vision_width, "num_heads": vision_heads, "out_hidden_size": width},
            **{"intermediate_size": vision_mlp, "fullatt_block_indexes": list(range(7, depth, 8)) or [depth - 1]},
        },
        tie_word_embeddings=shape.tied,
        **SPECIAL,
    )


def build_model(shape: Shape, device: torch.device, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """A model with random weights, in training mode. ValueError: this machine cannot run `attention`."""
    if reason := missing_kernel(attention, device.type == "cuda"):
        raise ValueError(reason)
    config = model_config(shape)
    config._attn_implementation = attention
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    with device:
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation=attention)
    torch.set_rng_state(generator_state)
    return model.train()


def build_batch(shape: Shape, seed: int = 0) -> Batch:
    """Clips with a prompt and an answer each, whose grids change little over time. As from data workers, pixels are
    uint8, in pinned memory if there is a GPU."""
    random = torch.Generator().manual_seed(seed)
    clips, (t, h, w) = shape.clips, shape.grid
    tokens = t * h * w
    ids, labels, pixels = [], [], []
    for _ in range(clips):
        prompt, answer = torch.randint(WORDS, shape.vocabulary, (2, PROMPT - 2), generator=random)
        answer = torch.cat([answer, answer[:2]])
        row = torch.cat([torch.tensor([1]), torch.full((tokens,), 4), torch.tensor([2]), prompt, answer])
        ids.append(row)
        labels.append(torch.cat([torch.full((len(row) - ANSWER,), IGNORE), answer]))
        still = torch.randn(1, 4 * h * w, 1176, generator=random)
        moved = still + 0.3 * torch.randn(t, 4 * h * w, 1176, generator=random)
        pixels.append((128 + 40 * moved).clamp(0, 255).to(torch.uint8).flatten(0, 1))
    return Batch(
        ids=tuple(map(str, range(clips))),
        input_ids_N=torch.cat(ids),
        labels_N=torch.cat(labels),
        segment_N=torch.arange(clips).repeat_interleave(len(ids[0])),
        pixel_values_videos=torch.cat(pixels).pin_memory() if torch.cuda.is_available() else torch.cat(pixels),
        video_grid_thw_V3=torch.tensor([[t, 2 * h, 2 * w]] * clips),
        second_per_grid_V=torch.ones(clips, dtype=torch.float64),
        pixel_values=None,
        image_grid_thw_I3=torch.zeros(0, 3, dtype=torch.long),
        video_M=torch.ones(clips, dtype=torch.bool),
        choices=((),) * clips,
        video_normal=((0.5,) * 3, (0.5,) * 3),
    )


def stock_inputs(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The same batch as padded rows, in the form of the processor and collator of transformers."""
    rows = len(batch.ids)
    ids = batch.input_ids_N.view(rows, -1).to(device)
    assert batch.pixel_values_videos is not None
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == 4).int(),
        "labels": batch.labels_N.view(rows, -1).to(device),
        "pixel_values_videos": normalised(batch.pixel_values_videos, batch.video_normal).to(device),
        "video_grid_thw": batch.video_grid_thw_V3.to(device),
        "second_per_grid_ts": batch.second_per_grid_V.float().to(device),
    }


def work(shape: Shape, rate: float, before: int | None = None) -> Work:
    """The batch at `rate` as the cost model needs it. `before`: the block of the tower before which tokens are
    dropped."""
    t, h, w = shape.grid
    kept = keep_count(Grid(t, h, w), rate)
    lengths = [PROMPT + ANSWER + kept] * shape.clips
    after_tower = batch_work([(t, 2 * h, 2 * w)] * shape.clips, lengths, ANSWER * shape.clips)
    if before is None:
        return after_tower
    return before_tower(model_config(shape), after_tower, shape.clips * (t * h * w - kept), before)


def our_task(model: Any, method: Method = PLACES["after"]) -> UptrainTask:
    return UptrainTask(model, adapter_for(model), method).train()


def stock_twin(model: Any) -> Any:
    """A copy of a model, made before its forwards are replaced by faster ones."""
    return copy.deepcopy(model)
