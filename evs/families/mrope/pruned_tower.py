"""A vision tower that drops the merge units that do not survive before one of its blocks.

Survivors keep the rotary tables and position embeddings of their original places. Temporal grids and windows shrink to
the survivors, and empty ones are dropped. The tables come from the library's module that defines the tower, so that the
result is identical if every unit is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Units:
    """The merge units (U) of a batch's media that survive, on the CPU, and the block before which the others go.

    Before block 0 the tower is given the rows of survivors alone.
    """

    kept_U: Tensor
    depth: int = 0


@dataclass(frozen=True)
class Order:
    """Units in the order in which the tower attends to them, with the borders of temporal grids and of windows."""

    unit_U: Tensor
    grids_B: Tensor
    windows_B: Tensor

    def only(self, kept_U: Tensor) -> Order:
        """The order of the kept units only; `kept_U` is indexed by unit."""
        kept = kept_U[self.unit_U]
        before = pad(kept.cumsum(0), (1, 0))
        grids_B, windows_B = (before[borders].unique_consecutive() for borders in (self.grids_B, self.windows_B))
        return Order(self.unit_U[kept], grids_B, windows_B)


def encode_units(visual: Any, pixels_RP: Tensor, grid_thw: Tensor, units: Units, stages: Stages) -> tuple[Tensor, ...]:
    """(merged rows of the survivors by unit, the same of every deepstack level); `grid_thw` on the CPU."""
    cell, all_U = visual.spatial_merge_size**2, torch.ones_like(units.kept_U)
    order = _order(visual, grid_thw)
    entering_U = units.kept_U if units.depth == 0 else all_U
    order = order.only(entering_U)
    place_U = entering_U.cumsum(0) - 1  # of a unit among the rows that enter
    device = pixels_RP.device
    rows_R = _rows(order.unit_U, cell)
    hidden = stages.embed(visual, pixels_RP)[_rows(place_U[order.unit_U], cell).to(device)]
    hidden = stages.place(visual, hidden, grid_thw, rows_R)
    rope = _rope(visual, hidden, grid_thw, rows_R)
    levels = []
    for number, block in enumerate(visual.blocks):
        if number == units.depth and number:
            hidden, order = _drop(hidden, order, units.kept_U, cell)
            rope = _rope(visual, hidden, grid_thw, _rows(order.unit_U, cell))
        hidden = block(hidden, position_embeddings=rope, **_borders(visual, order, number, device))
        if number in getattr(visual, "deepstack_visual_indexes", ()):
            merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(number)]
            levels.append(merger(_drop(hidden, order, units.kept_U, cell)[0]))
    hidden, order = _drop(hidden, order, units.kept_U, cell)
    by_unit = order.unit_U.argsort().to(device)
    return tuple(level[by_unit] for level in (stages.merge(visual, hidden), *levels))


def on_device(visual: Any) -> bool:
    """True if the blocks' attention takes the borders of windows on the device."""
    return "flash" in visual.config._attn_implementation


def borders(visual: Any, grid_thw: Tensor) -> dict[str, Tensor]:
    """Arguments of the library's forward that replace borders it would compute on the device."""
    order, cell = _order(visual, grid_thw.cpu()), visual.spatial_merge_size**2
    grids = {"cu_seqlens": order.grids_B * cell}
    if not hasattr(visual, "fullatt_block_indexes"):
        return grids
    return grids | {"cu_window_seqlens": order.windows_B * cell, "window_index": order.unit_U}


def _order(visual: Any, grid_thw: Tensor) -> Order:
    """Of all units. A tower without windows attends to whole temporal grids, unit by unit."""
    library, cell = vars(sys.modules[type(visual).__module__]), visual.spatial_merge_size**2
    grids_B = library["get_vision_attention_seqlens"](grid_thw, visual.config)[0].long() // cell
    if "get_vision_window_index" not in library:
        return Order(torch.arange(int(grids_B[-1])), grids_B, grids_B)
    unit_U, windows_B = library["get_vision_window_index"](
        grid_thw,
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
    )
    return Order(unit_U, grids_B, windows_B.long() // cell)


def _borders(visual: Any, order: Order, number: int, device: torch.device) -> dict[str, Any]:
    """The borders within which block `number` attends."""
    full = number in getattr(visual, "fullatt_block_indexes", (number,))
    cu_seqlens = (order.grids_B if full else order.windows_B) * visual.spatial_merge_size**2
    longest = int(cu_seqlens.diff().max())
    return {
        "cu_seqlens": cu_seqlens.to(device, torch.int32) if on_device(visual) else cu_seqlens,
        "max_seqlen": longest,
    }


def _placed(visual: Any, hidden: Tensor, grid_thw: Tensor, rows_R: Tensor) -> Tensor:
    """Patches with the position embeddings of their places, if the tower has them in addition to rotary ones."""
    if not hasattr(visual, "pos_embed"):
        return hidden
    taps, weights = vars(sys.modules[type(visual).__module__])["get_vision_interpolation_indices_and_weights"](
        grid_thw,
        num_grid_per_side=visual.num_grid_per_side,
        mode=visual.interpolation_mode,
        align_corners=visual.interpolation_align_corners,
        spatial_merge_size=visual.spatial_merge_size,
    )
    taps, weights = (table[rows_R].to(hidden.device) for table in (taps, weights))
    return hidden + (visual.pos_embed(taps) * weights[:, :, None]).sum(1).to(hidden.dtype)


@dataclass(frozen=True)
class Stages:
    """What a vision tower does before and after its blocks; the defaults are Qwen's."""

    embed: Callable[[Any, Tensor], Tensor] = lambda visual, pixels_RP: visual.patch_embed(pixels_RP)
    place: Callable[[Any, Tensor, Tensor, Tensor], Tensor] = _placed  # (tower, [R, D], grids, rows) -> [R, D]
    merge: Callable[[Any, Tensor], Tensor] = lambda visual, hidden: visual.merger(hidden)


def _rope(visual: Any, hidden: Tensor, grid_thw: Tensor, rows_R: Tensor) -> tuple[Tensor, Tensor]:
    places = vars(sys.modules[type(visual).__module__])["get_vision_position_ids"](grid_thw, visual.spatial_merge_size)
    return visual.rotary_pos_emb(hidden, places[rows_R].to(hidden.device))


def _drop(hidden: Tensor, order: Order, kept_U: Tensor, cell: int) -> tuple[Tensor, Order]:
    """The rows that survive, and their order; all of them if the others were dropped before."""
    kept = kept_U[order.unit_U]
    if bool(kept.all()):
        return hidden, order
    return hidden[_rows(kept.nonzero().squeeze(1), cell).to(hidden.device)], order.only(kept_U)


def _rows(units: Tensor, cell: int) -> Tensor:
    """The rows of units, `cell` of them each."""
    return (units[:, None] * cell + torch.arange(cell)).flatten()
