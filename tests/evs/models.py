"""Tiny random models of every family, and random packed prompts with videos, images and text for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    NemotronH_Omni_Reasoning_V3,
    NemotronH_Omni_Reasoning_V3_Config,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from evs.families import towers_of

VIDEO, IMAGE, START, END, WORDS = 11, 12, 13, 14, 10  # ids below WORDS are text
TEXT: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
TOWER: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 32,
}
IDS = {
    "video_token_id": VIDEO,
    "image_token_id": IMAGE,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
TOWER_3 = {**TOWER, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
HYBRID = {
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "rope_parameters": {**TEXT["rope_parameters"], "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5},
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
KERNELS = ("torch_chunk_gated_delta_rule", "causal_conv1d_fn")  # by these names the library calls them
MAMBA_KERNELS = ("mamba2_chunk_scan", "causal_conv1d_fn", "mamba2_split_conv1d_scan_combined")
TOWER_3_5 = {**TOWER, "num_position_embeddings": 64}
MAMBA = {
    **{name: TEXT[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")},
    **{
        name: TEXT[name] for name in ("num_key_value_heads", "head_dim", "bos_token_id", "eos_token_id", "pad_token_id")
    },
    **{"model_type": "nemotron_h", "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]},
    **{"mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 2, "chunk_size": 8},
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    **{"moe_shared_expert_intermediate_size": 16, "time_step_min": 0.001},
}
RADIO: dict[str, Any] = {
    **{"model_type": "radio", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4},
    **{"max_img_size": 32, "num_cls_tokens": 2, "num_registers": 1, "video_temporal_patch_size": 2},
}
BUILDERS: dict[str, Any] = {
    "qwen2_5_vl": lambda: Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=TEXT, vision_config={**TOWER, "window_size": 16, "fullatt_block_indexes": [1]}, **IDS
        )
    ),
    "qwen3_vl": lambda: Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=TEXT, vision_config=TOWER_3, **IDS)),
    "qwen3_vl_moe": lambda: Qwen3VLMoeForConditionalGeneration(
        Qwen3VLMoeConfig(text_config={**TEXT, **MOE}, vision_config=TOWER_3, **IDS)
    ),
    "qwen3_5": lambda: Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(text_config={**TEXT, **HYBRID}, vision_config=TOWER_3_5, **IDS)
    ),
    "qwen3_5_moe": lambda: Qwen3_5MoeForConditionalGeneration(
        Qwen3_5MoeConfig(
            text_config={**TEXT, **HYBRID, **MOE, "shared_expert_intermediate_size": 16},
            vision_config=TOWER_3_5,
            **IDS,
        )
    ),
    "nemotron_h_omni": lambda: NemotronH_Omni_Reasoning_V3(
        NemotronH_Omni_Reasoning_V3_Config(
            text_config=MAMBA,
            vision_config=RADIO,
            vision_hidden_size=32,
            projector_hidden_size=48,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        )
    ),
}
GLM_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": 15,
    "video_end_token_id": 16,
}
GLM_MOE = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1},
    "rope_parameters": HYBRID["rope_parameters"],
}
GLM_TOWER = {**TOWER, "image_size": 24}
BUILDERS |= {
    "glm4v": lambda: Glm4vForConditionalGeneration(
        Glm4vConfig(
            text_config={name: value for name, value in TEXT.items() if name != "head_dim"},
            vision_config=GLM_TOWER,
            **GLM_IDS,
        )
    ),
    "glm4v_moe": lambda: Glm4vMoeForConditionalGeneration(
        Glm4vMoeConfig(text_config={**TEXT, **GLM_MOE}, vision_config=GLM_TOWER, **GLM_IDS)
    ),
}
GLM = ("glm4v", "glm4v_moe")
ONE_PLACEHOLDER = ("nemotron_h_omni", *GLM)  # families whose videos and images share a placeholder token

# One family of experts decodes as its dense sibling does: test_adapters runs both.
DENSE = [family for family in BUILDERS if not family.endswith("moe")]
QWEN = [family for family in BUILDERS if family.startswith("qwen")]


def tiny_model(family: str) -> Any:
    """Deterministic weights, large enough that attention and positions matter."""
    torch.manual_seed(0)
    model = BUILDERS[family]().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@dataclass(frozen=True)
class Prompts:
    """What an adapter reads of a batch."""

    input_ids_N: torch.Tensor
    labels_N: torch.Tensor
    segment_N: torch.Tensor
    pixel_values_videos: torch.Tensor | None
    video_grid_thw_V3: torch.Tensor
    second_per_grid_V: torch.Tensor
    pixel_values: torch.Tensor | None
    image_grid_thw_I3: torch.Tensor
    video_M: torch.Tensor
    video_normal: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    image_normal: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def prompts(family: str, layout: list[list[Any]], seed: int = 0) -> Prompts:
    """A pack of samples; a sample is a list of text lengths (int) and media ("video" | "image", (T, H, W) merged)."""
    random = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    labels: list[int] = []
    segments: list[int] = []
    grids: dict[str, list[tuple[int, int, int]]] = {"video": [], "image": []}
    videos: list[bool] = []
    for sample, items in enumerate(layout):
        begin = len(ids)
        for item in items:
            if isinstance(item, int):
                ids += torch.randint(0, WORDS, (item,), generator=random).tolist()
                continue
            kind, (t, h, w) = item
            grids[kind].append((t, 2 * h, 2 * w))
            videos.append(kind == "video")
            pad = VIDEO if kind == "video" and family not in ONE_PLACEHOLDER else IMAGE
            if kind == "video" and family != "qwen2_5_vl":
                for frame in range(t):
                    ids += [*([5] * (1 + frame % 2)), START, *([pad] * (h * w)), END]
            else:
                ids += [START, *([pad] * (t * h * w)), END]
        segments += [sample] * (len(ids) - begin)
        answer = min(3, len(ids) - begin - 1)
        labels += [-100] * (len(ids) - begin - answer) + ids[len(ids) - answer :]

    def pixels(kind: str) -> torch.Tensor | None:
        rows = sum(t * h * w for t, h, w in grids[kind])
        frames = 1 if kind == "image" and family == "nemotron_h_omni" else 2
        return torch.randn(rows, 3 * frames * 4 * 4, generator=random) if rows else None

    return Prompts(
        torch.tensor(ids),
        torch.tensor(labels),
        torch.tensor(segments),
        pixels("video"),
        torch.tensor(grids["video"], dtype=torch.long).view(-1, 3),
        torch.linspace(0.4, 1.3, len(grids["video"]), dtype=torch.float64),
        pixels("image"),
        torch.tensor(grids["image"], dtype=torch.long).view(-1, 3),
        torch.tensor(videos, dtype=torch.bool),
    )


MIXED = [
    [3, ("video", (4, 2, 3)), 5],
    [("image", (1, 2, 2)), 2, ("video", (3, 3, 2)), 1, ("video", (2, 2, 2)), 4],
    [6],
    [("video", (5, 2, 2)), 2, ("image", (1, 3, 2)), 7],
]


def alone(batch: Prompts, family: str, layout: list[list[Any]], sample: int) -> Prompts:
    """One sample of a pack as a pack of its own, with its own slice of pixels."""
    one = prompts(family, [layout[sample]])
    keep = batch.segment_N == sample
    before = [item for items in layout[:sample] for item in items if not isinstance(item, int)]

    def rows(kind: str) -> tuple[int, int]:
        skipped = sum(4 * t * h * w for k, (t, h, w) in before if k == kind)
        own = sum(4 * t * h * w for k, (t, h, w) in [i for i in layout[sample] if not isinstance(i, int)] if k == kind)
        return skipped, skipped + own

    def cut(pixels: torch.Tensor | None, kind: str) -> torch.Tensor | None:
        begin, end = rows(kind)
        return pixels[begin:end] if pixels is not None and end > begin else None

    videos = sum(kind == "video" for kind, _ in before)
    return replace(
        one,
        input_ids_N=batch.input_ids_N[keep],
        labels_N=batch.labels_N[keep],
        segment_N=torch.zeros(int(keep.sum()), dtype=torch.long),
        pixel_values_videos=cut(batch.pixel_values_videos, "video"),
        second_per_grid_V=batch.second_per_grid_V[videos : videos + len(one.second_per_grid_V)],
        pixel_values=cut(batch.pixel_values, "image"),
        video_normal=batch.video_normal,
        image_normal=batch.image_normal,
    )


def stock_inputs(family: str, batch: Prompts) -> SimpleNamespace | None:
    """The library's own keyword arguments for a pack of one sample; None where it takes no such prompt."""
    if family == "nemotron_h_omni":
        return _nemotron_inputs(batch)
    if family in GLM and len(set(batch.video_M.tolist())) > 1:
        return None
    kwargs = {
        "input_ids": batch.input_ids_N[None],
        "pixel_values_videos": batch.pixel_values_videos,
        "video_grid_thw": batch.video_grid_thw_V3 if len(batch.video_grid_thw_V3) else None,
        "pixel_values": batch.pixel_values,
        "image_grid_thw": batch.image_grid_thw_I3 if len(batch.image_grid_thw_I3) else None,
    }
    return SimpleNamespace(**{name: value for name, value in kwargs.items() if value is not None})


def unclamped(model: Any) -> Any:
    """The library's model with Mamba's steps as it decodes and as servers run it: without a least one."""
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
    return model


def _nemotron_inputs(batch: Prompts) -> SimpleNamespace | None:
    shapes = {tuple(thw) for thw in batch.video_grid_thw_V3.tolist()}
    if len(shapes) > 1 or not (batch.video_M.all() or not batch.video_M.any()):
        return None
    inputs: dict[str, Any] = {"input_ids": batch.input_ids_N[None]}
    for t, h, w in shapes:
        assert batch.pixel_values_videos is not None
        patches = batch.pixel_values_videos.view(-1, t, h, w, 6, 4, 4).permute(0, 1, 4, 2, 5, 3, 6)
        inputs["pixel_values_videos"] = patches.reshape(-1, t, 6, 4 * h, 4 * w)
    if batch.pixel_values is not None:
        inputs |= {"pixel_values": batch.pixel_values, "image_grid_hw": batch.image_grid_thw_I3[:, 1:]}
    return SimpleNamespace(**inputs)


@contextmanager
def one_row(model: Any, *, restart: bool = True) -> Iterator[None]:
    """Packs are read as one row, as where kernels with variable lengths are installed.

    In place of those of flash-linear-attention, mamba-ssm and causal-conv1d, which need a GPU, stand the library's own
    recurrence and convolution, called between the borders that the kernels would be given; or, without `restart`,
    across them.
    """
    library: Any = sys.modules[type(towers_of(model).language).__module__]
    mamba = hasattr(library, MAMBA_KERNELS[0])
    names = MAMBA_KERNELS if mamba else KERNELS
    rule, convolution = (getattr(library, name, None) for name in names[:2])

    def rule_between(
        *qkv: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, cu_seqlens: torch.Tensor, **_: Any
    ) -> Any:
        lengths = cu_seqlens.diff().tolist() if restart else [len(qkv[0][0])]
        pieces = zip(*(x.split(lengths, dim=1) for x in (*qkv, g, beta)))
        outs = [rule(q, k, v, g=g, beta=b, use_qk_l2norm_in_kernel=True)[0] for q, k, v, g, b in pieces]
        return torch.cat(outs, dim=1), None

    def convolution_between(x: torch.Tensor, *weights: Any, activation: str, seq_idx: torch.Tensor, **_: Any) -> Any:
        lengths = seq_idx[0].bincount().tolist() if restart else [x.shape[2]]
        return torch.cat([convolution(x, *weights, activation=activation) for x in x.split(lengths, dim=2)], dim=2)

    def scan_between(*xs: torch.Tensor, seq_idx: torch.Tensor, **options: Any) -> torch.Tensor:
        hidden, dt, decay, *states = xs
        lengths = seq_idx[0].bincount().tolist() if restart else [hidden.shape[1]]
        pieces = zip(*(x.split(lengths, dim=1) for x in (hidden, dt, *states)))
        return torch.cat([rule(x, step, decay, *bc, **options) for x, step, *bc in pieces], dim=1)

    stands_in = (scan_between if mamba else rule_between, convolution_between, lambda *_, **__: None)
    with patch.multiple("evs.packing", MASK_FREE=("sdpa",), installed=lambda _: True):
        if rule is None:
            yield
        else:
            with patch.multiple(library, **dict(zip(names, stands_in))):
                yield
