"""vLLM's vision towers given the survivors alone, for checkpoints that were trained with `prune_at=input`.

Both towers take what they know of their rows' places as an argument: here it is what is left of that, so their own
forward runs, on rows of the survivors, at their original places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from vllm.model_executor.layers.attention import MMEncoderAttention
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from evs.families.mrope.pruned_tower import Order
from evs.methods.pixels import PixelDelta
from evs.selection import select
from evs.serving.start import policy_of
from evs.types import Grid


class SeesSurvivors:
    """A mixin before a model with `PreservedPositions`, whose tower `encode_kept` knows."""

    is_multimodal_pruning_enabled: bool
    video_pruning_rate: float
    visual: Any
    _grid: Callable[[Sequence[int]], Grid]
    _kept: Callable[[Any, Callable[[int, Sequence[int]], Tensor]], list[Tensor]]
    _carried: Callable[[Sequence[Tensor], Sequence[Tensor], Any], tuple[Tensor, ...]]

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        policy = policy_of(vllm_config.model_config)
        at_input = policy is not None and policy.prune_at == "input"
        self._before_tower = at_input and self.is_multimodal_pruning_enabled

    def _process_video_input(self, video_input: Any) -> Any:
        # Nothing yet: the tower sees survivors alone, once they are chosen.
        return () if self._before_tower else super()._process_video_input(video_input)  # type: ignore[misc]

    def _postprocess_video_embeds_evs(self, videos: Any, video_input: Any) -> tuple[Tensor, ...]:
        if not self._before_tower:
            return super()._postprocess_video_embeds_evs(videos, video_input)  # type: ignore[misc]
        assert video_input["type"] == "pixel_values_videos"  # evs.serving.start refuses a server that takes rows
        pixels_RP, grids_thw = video_input["pixel_values_videos"], video_input["video_grid_thw"].tolist()
        if pixels_RP.dtype != torch.uint8:
            raise ValueError("prune_at=input scores uint8 pixels, but these are normalised: leave do_normalize alone")
        pixels_UC = pixels_RP.reshape(-1, pixels_RP.shape[1] * self.visual.spatial_merge_unit)
        units = [self._grid(thw).tokens for thw in grids_thw]
        videos = pixels_UC.split(units)

        def choose(video: int, thw: Sequence[int]) -> Tensor:
            return select(PixelDelta()(videos[video], self._grid(thw)), self.video_pruning_rate)

        kept = self._kept(video_input, choose)
        kept_R = torch.cat([kept_K + first for kept_K, first in zip(kept, accumulate(units, initial=0))])
        rows = encode_kept(self.visual, pixels_UC, grids_thw, kept_R)
        return self._carried(rows.split([len(kept_K) for kept_K in kept]), kept, video_input)


def encode_kept(visual: Any, pixels_UC: Tensor, grids_thw: Sequence[Sequence[int]], kept_K: Tensor) -> Tensor:
    """Merged rows of the kept units of all videos, ascending. `pixels_UC`: uint8 pixels of every unit."""
    kept_U = torch.zeros(len(pixels_UC), dtype=torch.bool)
    with gpu_sync_allowed():
        kept_U[kept_K.cpu()] = True  # on the host, as the tower takes the borders of attention
    metadata = _windowed if hasattr(visual, "get_rope_by_thw") else _whole
    pixels_RP = pixels_UC[kept_K].reshape(len(kept_K) * visual.spatial_merge_unit, -1)
    with gpu_sync_allowed():
        return visual(pixels_RP, None, encoder_metadata=metadata(visual, grids_thw, kept_U))


def _whole(visual: Any, grids_thw: Sequence[Sequence[int]], kept_U: Tensor) -> dict[str, Any]:
    """Of Qwen3-VL's tower, which attends to whole temporal grids."""
    order = Order(torch.arange(len(kept_U)), *[_grids(visual, grids_thw)] * 2).only(kept_U)
    kept_R = kept_U.repeat_interleave(visual.spatial_merge_unit)
    cos, sin = visual.rot_pos_emb(grids_thw)
    rows = (visual.fast_pos_embed_interpolate(grids_thw), cos, sin)
    names = ("pos_embeds", "rotary_pos_emb_cos", "rotary_pos_emb_sin")
    return {name: each[kept_R.to(each.device)] for name, each in zip(names, rows)} | _borders(visual, order.grids_B)


def _windowed(visual: Any, grids_thw: Sequence[Sequence[int]], kept_U: Tensor) -> dict[str, Any]:
    """Of Qwen2.5-VL's tower, which reads units window by window."""
    cell = visual.spatial_merge_unit
    grids_B = _grids(visual, grids_thw)
    cos, sin, units, windows = [], [], [], [torch.zeros(1, dtype=torch.long)]
    first = 0
    for thw in grids_thw:
        cos_R, sin_R, unit_U, windows_B, _ = visual.get_rope_by_thw(*thw)
        cos.append(cos_R)
        sin.append(sin_R)
        units.append(unit_U + first)
        windows.append(windows_B.long() // cell + first)
        first += len(unit_U)
    whole = Order(torch.cat(units), grids_B, torch.cat(windows))
    order = whole.only(kept_U)
    kept_R = kept_U[whole.unit_U].repeat_interleave(cell)
    place_U = kept_U.cumsum(0) - 1  # of a unit among the rows that enter
    window_index = place_U[order.unit_U]
    full, window = _borders(visual, order.grids_B), _borders(visual, order.windows_B)
    tables = {"rotary_pos_emb_cos": torch.cat(cos), "rotary_pos_emb_sin": torch.cat(sin)}
    return {
        **{name: each[kept_R.to(each.device)].to(visual.device) for name, each in tables.items()},
        "window_index": window_index.to(visual.device),
        "reverse_indices": window_index.argsort().to(visual.device),
        "cu_seqlens": full["cu_seqlens"],
        "max_seqlen_full": full["max_seqlen"],
        "sequence_lengths_full": full["sequence_lengths"],
        "cu_window_seqlens": window["cu_seqlens"],
        "max_seqlen_window": window["max_seqlen"],
        "sequence_lengths_window": window["sequence_lengths"],
    }


def _grids(visual: Any, grids_thw: Sequence[Sequence[int]]) -> Tensor:
    """Borders of temporal grids, in units."""
    grids_V3 = torch.tensor(grids_thw)
    units_B = (grids_V3[:, 1] * grids_V3[:, 2] // visual.spatial_merge_unit).repeat_interleave(grids_V3[:, 0])
    return pad(units_B.cumsum(0), (1, 0))


def _borders(visual: Any, units_B: Tensor) -> dict[str, Any]:
    """How far attention goes, as the server's kernels take it."""
    borders = (units_B * visual.spatial_merge_unit).numpy().astype(np.int32)
    backend, device = visual.attn_backend, visual.device
    return {
        "max_seqlen": torch.tensor(MMEncoderAttention.compute_max_seqlen(backend, borders), dtype=torch.int32),
        "sequence_lengths": MMEncoderAttention.maybe_compute_seq_lens(backend, borders, device),
        "cu_seqlens": MMEncoderAttention.maybe_recompute_cu_seqlens(
            backend,
            borders,
            visual.hidden_size,
            visual.tp_size,
            device,
            fp8_padded_hidden_size=visual.fp8_padded_hidden_size,
        ),
    }
