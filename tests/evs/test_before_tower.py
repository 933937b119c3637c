"""The towers on a ragged set of merge units, against the whole tower and against attention that is masked in it."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from evs.families import adapter_for
from evs.families.mrope.pruned_tower import Units, borders
from tests.evs.models import GLM, QWEN, prompts

LAYOUT = [
    [("image", (1, 5, 3)), 2, ("video", (3, 3, 6)), 1, ("video", (2, 2, 2)), 4],
    [3, ("video", (4, 7, 5)), 5],
]
DEPTHS = [0, 1, 3]


@pytest.fixture(params=[*QWEN, *GLM])
def family(request):
    return request.param


@pytest.fixture
def tower(family, model):
    """(the sped-up tower, patches of images and videos of unequal windows, their grids, units)."""
    batch = prompts(family, LAYOUT)
    grids = adapter_for(model).tower_grids(torch.cat([batch.image_grid_thw_I3, batch.video_grid_thw_V3]))
    pixels = torch.cat([batch.pixel_values, batch.pixel_values_videos])
    return adapter_for(model).model.model.visual, pixels, grids, len(pixels) // 4


@pytest.mark.parametrize("depth", DEPTHS)
def test_before_tower_everything_kept_is_the_whole_tower_to_the_bit(tower, depth):
    visual, pixels, grids, units = tower
    whole = visual(pixels, grid_thw=grids)
    rows, *levels = visual(pixels, grid_thw=grids, units=Units(torch.ones(units, dtype=torch.bool), depth))
    assert torch.equal(rows, whole.pooler_output)
    for ours, theirs in zip(levels, getattr(whole, "deepstack_features", None) or [], strict=True):
        assert torch.equal(ours, theirs)


def masked(attn, kept_R):
    """An attention over whole grids and windows in which no row sees the rows that are not kept."""

    def forward(hidden, cu_seqlens, position_embeddings, **_):
        q, k, v = attn.qkv(hidden).reshape(len(hidden), 3, attn.num_heads, -1).unbind(1)
        q, k = (x.transpose(0, 1) for x in apply_rotary_pos_emb_vision(q, k, *position_embeddings))
        window_R = torch.bucketize(torch.arange(len(hidden)), cu_seqlens[1:], right=True)
        seen_RR = (window_R[:, None] == window_R) & kept_R
        scores = (q @ k.mT * attn.head_dim**-0.5).masked_fill(~seen_RR, -1e9)
        return attn.proj((scores.softmax(-1) @ v.transpose(0, 1)).transpose(0, 1).flatten(1))

    return forward


@pytest.mark.parametrize(("depth", "share"), [(0, 0.1), (0, 0.9), (1, 0.5), (3, 0.5)])
def test_before_tower_dropping_equals_masking_in_the_whole_tower(tower, depth, share, monkeypatch):
    visual, pixels, grids, units = tower
    kept_U = torch.rand(units, generator=torch.Generator().manual_seed(depth)) < share
    kept_R = kept_U.repeat_interleave(4)
    rows, *levels = visual(pixels[kept_R] if depth == 0 else pixels, grid_thw=grids, units=Units(kept_U, depth))
    unit_U = borders(visual, grids).get("window_index", torch.arange(units))
    in_order_R = kept_U[unit_U].repeat_interleave(4)
    for number, block in enumerate(visual.blocks):
        seen_R = in_order_R if number >= depth else torch.ones_like(in_order_R)
        monkeypatch.setattr(block.attn, "forward", masked(block.attn, seen_R))
    whole = visual(pixels, grid_thw=grids)
    torch.testing.assert_close(rows, whole.pooler_output[kept_U], atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(levels, getattr(whole, "deepstack_features", None) or [], strict=True):
        torch.testing.assert_close(ours, theirs[kept_U], atol=1e-5, rtol=1e-5)


def test_before_tower_gradients_and_checkpointing_reach_every_weight(tower):
    visual, pixels, grids, units = tower
    kept_U = torch.rand(units, generator=torch.Generator().manual_seed(0)) < 0.5

    def gradients():
        visual.zero_grad()
        rows = visual(pixels, grid_thw=grids, units=Units(kept_U, 1))
        sum(level.square().sum() for level in rows).backward()
        return [parameter.grad for parameter in visual.parameters()]

    plain = gradients()
    visual.train()
    visual.gradient_checkpointing_enable()
    for one, other in zip(plain, gradients(), strict=True):
        assert one.any()
        torch.testing.assert_close(one, other)
