"""Faster forwards for the vision towers of transformers with Qwen's layout, with the same weights and keys.

The patch embedding is a Conv3d whose stride is its kernel: a matrix product. Outside FlashAttention the library
attends one window at a time in a Python loop; windows of equal length make one batched call. In half precision on a
CPU, where SDPA's kernel is slow at short windows (above all backward), that call is two matrix products. The borders of
windows stay on the CPU, so that no block waits for a GPU to learn them. Qwen2.5-VL's MLP is 3420 wide: a GPU's matrix
units load 16 bytes at a time, and take 2.7 to 3.4 times as long for it as for 3424, which zeros fill up.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, scaled_dot_product_attention

from evs.families.mrope.pruned_tower import Stages, Units, borders, encode_units, on_device
from evs.patch import patch_forward

GATED = ("gate_proj", "up_proj", "down_proj")
ALIGNED = 8  # numbers of half precision in the 16 bytes that a GPU's matrix units load at once
SHORT = 256  # rows: up to here windows are attended by matrix products on a CPU


def speed_up(visual: Any, stages: Stages) -> None:
    """Rebind the forwards of a vision tower: same weights, same keys, equal up to rounding."""
    proj = visual.patch_embed.proj
    if tuple(proj.stride) != tuple(proj.kernel_size):
        raise ValueError(
            f"patch embedding with stride {proj.stride} and kernel {proj.kernel_size} is not a matrix product"
        )
    patch_forward(visual, partial(_forward, visual, stages=stages))
    # The forward of the module that owns the weight, so that ZeRO 3 gathers it around the call.
    patch_forward(proj, partial(_patches_as_matrix_product, proj))
    for block in visual.blocks:
        if not on_device(visual):
            patch_forward(block.attn, partial(_attend_windows, block.attn))
        align(block.mlp)


def align(mlp: Any) -> None:
    """Widen a gated MLP to what matrix units take at full speed, on a GPU in half precision."""
    layers = [layer for name in GATED if type(layer := getattr(mlp, name, None)) is nn.Linear]  # not under LoRA
    if len(layers) == len(GATED) and layers[0].out_features % ALIGNED:
        *opening, closing = layers
        for layer in opening:
            patch_forward(layer, partial(_widened, layer))
        patch_forward(closing, partial(_narrowed, closing))


def _widened(layer: nn.Linear, x: Tensor) -> Tensor:
    """[..., D] -> [..., D'], padded with zeros if that is faster."""
    more, bias = -layer.out_features % ALIGNED * in_half_precision_on_gpu(x), layer.bias
    if not more:
        return linear(x, layer.weight, bias)
    return linear(x, pad(layer.weight, (0, 0, 0, more)), None if bias is None else pad(bias, (0, more)))


def _narrowed(layer: nn.Linear, x: Tensor) -> Tensor:
    """[..., D'] -> [..., D]; the input may be padded with zeros."""
    more = x.shape[-1] - layer.in_features
    return linear(x, pad(layer.weight, (0, more)) if more else layer.weight, layer.bias)


def in_half_precision_on_gpu(x: Tensor) -> bool:
    """True if matrix products with `x` run in half precision on a GPU."""
    return x.is_cuda and (x.dtype != torch.float32 or torch.is_autocast_enabled("cuda"))


def levels_of(rows_RP: Tensor | None, normal: tuple[Sequence[float], Sequence[float]] | None) -> Tensor:
    """[R, patch] uint8 pixels of patches, without loss: processors resize in uint8 before they normalise."""
    if rows_RP is None:
        return torch.zeros(0, 1, dtype=torch.uint8)
    if rows_RP.dtype == torch.uint8:
        return rows_RP
    if normal is None:
        raise ValueError("pixels cannot be taken back to uint8 without their mean and std: give batch.video_normal")
    mean_C, std_C = torch.tensor(normal, dtype=torch.float32)[..., None]
    levels = 255 * (rows_RP.float().unflatten(1, (len(mean_C), -1)) * std_C + mean_C)
    return levels.round().clamp(0, 255).to(torch.uint8).flatten(1)


def normalised(rows_RP: Tensor, normal: tuple[Sequence[float], Sequence[float]] | None) -> Tensor:
    """[R, patch] float32 of uint8 patches, normalised as by a processor; other dtypes are returned as they are."""
    if rows_RP.dtype != torch.uint8:
        return rows_RP
    if normal is None:
        raise ValueError("uint8 pixels cannot be normalised without their mean and std: give the batch its normal")
    constants = 255 * torch.tensor(normal, dtype=torch.float32)
    mean_C, std_C = constants.to(rows_RP.device, non_blocking=True)[..., None]
    return rows_RP.float().unflatten(1, (len(mean_C), -1)).sub_(mean_C).div_(std_C).flatten(1)


def _forward(
    visual: Any, pixels_RP: Tensor, grid_thw: Tensor, units: Units | None = None, *, stages: Stages, **options: Any
) -> Any:
    """The library's forward; with `units`, a tuple of the rows of those merge units."""
    if units is not None:
        return encode_units(visual, pixels_RP, grid_thw, units, stages)
    if not on_device(visual):
        options |= borders(visual, grid_thw)
    return type(visual).forward(visual, pixels_RP, grid_thw=grid_thw.to(pixels_RP.device), **options)


def _patches_as_matrix_product(proj: nn.Conv3d, x: Tensor) -> Tensor:
    """[R, C, T, H, W] patches -> [R, E, 1, 1, 1], as the convolution would return them."""
    return linear(x.flatten(1), proj.weight.flatten(1), proj.bias)[:, :, None, None, None]


def _attend_windows(
    attn: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
) -> Tensor:
    """[R, D] patches -> [R, D]; `cu_seqlens` are the windows' borders, [windows + 1], on the CPU."""
    rows = hidden_states.shape[0]
    q, k, v = attn.qkv(hidden_states).reshape(rows, 3, attn.num_heads, -1).unbind(1)
    cos, sin = (x.float().chunk(2, dim=-1)[0].unsqueeze(-2) for x in position_embeddings)  # their halves are equal
    q, k = (rotate(x, cos, sin) for x in (q, k))
    lengths = cu_seqlens.diff().tolist()
    out = _attend_equal(q, k, v, lengths[0]) if len(set(lengths)) == 1 else _attend_ragged(q, k, v, lengths)
    return attn.proj(out.reshape(rows, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [..., d] in float32, bit by bit the library's; `cos` and `sin` are [..., d / 2]."""
    first, second = x.float().chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat([half.to(x.dtype) for half in turned], dim=-1)


def _attend_equal(q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
    """[R, heads, d] each -> [R, heads, d], attention within consecutive windows of `length` rows."""
    q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v))
    short = length <= SHORT and q.device.type == "cpu" and q.dtype != torch.float32
    attend = _matrix_products if short else scaled_dot_product_attention
    return attend(q, k, v).transpose(1, 2).flatten(0, 1)


def _matrix_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[windows, heads, length, d] each -> the same: what the library's eager attention computes, for all windows."""
    windows = len(q)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(q.new_zeros(1), q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, (windows, -1))


def _attend_ragged(q: Tensor, k: Tensor, v: Tensor, window_lengths: list[int]) -> Tensor:
    together_R, back_R, lengths, rows = _by_length(tuple(window_lengths), q.device)
    qs, ks, vs = (x.index_select(0, together_R).split(rows) for x in (q, k, v))
    return torch.cat(list(map(_attend_equal, qs, ks, vs, lengths))).index_select(0, back_R)


@lru_cache(4)  # the same for all blocks of a batch that attend alike, recomputed ones included
@torch.inference_mode(False)  # or what an evaluation has left could not be trained on
def _by_length(windows: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, list[int], list[int]]:
    """(all rows, those of windows of equal length together; where each row then is; the lengths; the rows of each)."""
    length_R = torch.tensor(windows).repeat_interleave(torch.tensor(windows))
    together_R = length_R.argsort(stable=True)
    lengths, rows = length_R.unique(return_counts=True)
    return together_R.to(device), together_R.argsort().to(device), lengths.tolist(), rows.tolist()
