"""The adapters against the library's own forward, and the pack against its samples one at a time."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLMLP, apply_rotary_pos_emb_vision

from evs import FrameDelta, keep_count, keep_mask, prune
from evs.families import adapter_for, spec_of, towers_of
from evs.families.mrope.fast_tower import align, normalised, rotate
from tests.evs.models import GLM, IMAGE, MIXED, QWEN, alone, prompts, stock_inputs, unclamped


def pruned(adapter, batch, rate):
    x, features = adapter.encode_media(batch, adapter.embed_prompt(batch))
    grids = adapter.grids(batch)
    return prune(x, keep_mask(x, features, grids, [rate] * len(grids), FrameDelta()))


@pytest.mark.parametrize("sample", range(len(MIXED)))
def test_the_stock_forward_is_reproduced_given_the_same_positions(family, model, batch, sample):
    one = alone(batch, family, MIXED, sample)
    stock, adapter = unclamped(copy.deepcopy(model)), adapter_for(model)
    x, _ = adapter.encode_media(one, adapter.embed_prompt(one))
    if (inputs := stock_inputs(family, one)) is None:
        pytest.skip("the library takes no prompt with both videos and images")
    ours = towers_of(model).head(adapter.decode(x))
    positions = x.positions_PN[:, None] if len(x.positions_PN) > 1 else x.positions_PN
    types = {"mm_token_type_ids": torch.zeros_like(inputs.input_ids)} if family in GLM else {}  # positions are given
    theirs = stock(**vars(inputs), **types, position_ids=positions).logits[0]
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_rate_zero_is_the_identity(model, batch):
    adapter = adapter_for(model)
    x, features = adapter.encode_media(batch, adapter.embed_prompt(batch))
    grids = adapter.grids(batch)
    same = prune(x, keep_mask(x, features, grids, [0.0] * len(grids), FrameDelta()))
    for name, value in vars(x).items():
        for a, b in zip(value, getattr(same, name)) if name == "deepstack" else [(value, getattr(same, name))]:
            assert torch.equal(a, b), name


@pytest.mark.parametrize("rate", [0.3, 0.75])
def test_a_pack_equals_its_samples_one_at_a_time(family, model, batch, rate):
    adapter = adapter_for(model)
    x = pruned(adapter, batch, rate)
    packed = adapter.decode(x)
    for sample in range(len(MIXED)):
        one = pruned(adapter, alone(batch, family, MIXED, sample), rate)
        assert torch.equal(one.positions_PN, x.positions_PN[:, x.segment_N == sample])
        torch.testing.assert_close(adapter.decode(one), packed[x.segment_N == sample], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_and_padded_agree(model, batch, attention, monkeypatch):
    adapter = adapter_for(model)
    x = pruned(adapter, batch, 0.5)
    padded = adapter.decode(x)
    towers_of(model).language.set_attn_implementation(attention)
    monkeypatch.setattr("evs.packing.MASK_FREE", (attention,))
    torch.testing.assert_close(adapter.decode(x), padded, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("rate", [0.0, 0.4, 0.9])
def test_counts_are_the_servers_and_targets_never_change(model, batch, rate):
    adapter = adapter_for(model)
    full, x = adapter.embed_prompt(batch), pruned(adapter, batch, rate)
    for video, grid in enumerate(adapter.grids(batch)):
        assert int((x.video_N == video).sum()) == keep_count(grid, rate)
    assert torch.equal(x.labels_N[x.labels_N >= 0], full.labels_N[full.labels_N >= 0])
    assert int((x.video_N < 0).sum()) == int((full.video_N < 0).sum())


def test_gradients_reach_the_vision_tower_through_retained_rows(model, batch):
    adapter = adapter_for(model)
    adapter.decode(pruned(adapter, batch, 0.7)).square().mean().backward()
    for name, parameter in towers_of(model).vision.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_batch_without_media_still_calls_the_tower(family, model):
    adapter = adapter_for(model)
    calls = []
    towers_of(model).vision.register_forward_hook(lambda *_: calls.append(1))
    batch = prompts(family, [[4], [5]])
    x, features = adapter.encode_media(batch, adapter.embed_prompt(batch))
    assert calls == [1] and len(features) == 0
    adapter.decode(x).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in towers_of(model).vision.parameters())


@pytest.mark.parametrize("family", QWEN)
def test_speeding_up_the_tower_changes_nothing_but_rounding(family, model, batch):
    stock = copy.deepcopy(model)
    adapter = adapter_for(model)
    assert stock.state_dict().keys() == model.state_dict().keys()
    theirs = stock.model.visual(batch.pixel_values_videos, grid_thw=batch.video_grid_thw_V3).pooler_output
    ours = adapter.model.model.visual(batch.pixel_values_videos, grid_thw=batch.video_grid_thw_V3).pooler_output
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_towers_rotation_is_the_librarys_to_the_bit():
    q, k, angles = torch.randn(6, 2, 8).bfloat16(), torch.randn(6, 2, 8).bfloat16(), torch.randn(6, 4)
    cos, sin = angles.cos(), angles.sin()
    theirs = apply_rotary_pos_emb_vision(q, k, torch.cat([cos, cos], -1), torch.cat([sin, sin], -1))
    for x, turned in zip((q, k), theirs):
        assert torch.equal(rotate(x, cos[:, None], sin[:, None]), turned)


@pytest.mark.parametrize("family", QWEN)
def test_in_half_precision_the_tower_strays_from_float32_as_the_library_does(model, batch):
    def tower(visual, dtype):
        pixels = batch.pixel_values_videos.to(dtype)
        return visual.to(dtype)(pixels, grid_thw=batch.video_grid_thw_V3).pooler_output.float()

    stock = copy.deepcopy(model).model.visual
    exact, theirs = tower(copy.deepcopy(stock), torch.float32), tower(stock, torch.bfloat16)
    ours = tower(adapter_for(model).model.model.visual, torch.bfloat16)
    assert (ours - exact).square().mean() < 1.5 * (theirs - exact).square().mean()


def test_more_placeholders_than_videos_is_an_error(family, model):
    adapter = adapter_for(model)
    two, one = (
        prompts(family, [[2, ("video", (2, 2, 2)), 3]] * 2),
        prompts(family, [[2, ("video", (2, 2, 2)), 3]]),
    )
    broken = type(one)(**{**vars(one), "input_ids_N": two.input_ids_N, "segment_N": two.segment_N})
    with pytest.raises(ValueError, match=r"placeholders .*: remove a mark or add a file"):
        adapter.embed_prompt(broken)


def test_an_unsupported_family_names_the_supported_ones():
    with pytest.raises(ValueError, match="'llava' is not supported: use one of qwen2_5_vl"):
        spec_of(SimpleNamespace(model_type="llava"))


@pytest.mark.parametrize("family", QWEN)
def test_uint8_pixels_are_seen_as_what_a_processor_makes_of_them(model, batch):
    adapter, random = adapter_for(model), torch.Generator().manual_seed(0)
    kinds = {"pixel_values": "image_normal", "pixel_values_videos": "video_normal"}
    normals = {"image_normal": ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28)), "video_normal": ((0.5,) * 3, (0.4,) * 3)}
    sizes = {kind: getattr(batch, kind).shape for kind in kinds}
    pixels = {kind: torch.randint(0, 256, size, dtype=torch.uint8, generator=random) for kind, size in sizes.items()}
    raw = replace(batch, **pixels, **normals)
    ready = replace(batch, **{kind: normalised(pixels[kind], normals[name]) for kind, name in kinds.items()})
    embedded = adapter.embed_prompt(batch)
    keep_N = (torch.rand(len(embedded.segment_N), generator=random) < 0.5) | ~embedded.visual_N
    for look in (
        lambda each: adapter.encode_media(each, embedded)[0],
        lambda each: adapter.encode_kept(each, embedded, keep_N, 0),
    ):
        assert torch.equal(look(raw).embeds_ND, look(ready).embeds_ND)
    with pytest.raises(ValueError, match="uint8 pixels cannot be normalised without their mean and std"):
        adapter.encode_media(replace(raw, image_normal=None), embedded)


@pytest.mark.parametrize("family", QWEN)
def test_no_block_of_the_tower_asks_the_device_how_long_its_windows_are(model, batch):
    visual = adapter_for(copy.deepcopy(model)).model.model.visual.to("meta")  # there every value asked for is an error
    grids = torch.cat([batch.image_grid_thw_I3, batch.video_grid_thw_V3])
    rows = len(batch.pixel_values) + len(batch.pixel_values_videos)
    with torch.device("meta"):
        tables = {"position_ids": torch.zeros(rows, 2), "interp_indices": torch.zeros(rows, 4, dtype=torch.long)}
        pixels, weights = torch.zeros(rows, batch.pixel_values.shape[1]), torch.zeros(rows, 4)
    merged = visual(pixels, grid_thw=grids, **tables, interp_weights=weights).pooler_output
    assert len(merged) == rows // 4


def test_a_widened_mlp_is_the_mlp(monkeypatch):
    """As on a GPU in half precision: values and gradients, whose shapes are the weights'."""
    monkeypatch.setattr("evs.families.mrope.fast_tower.in_half_precision_on_gpu", lambda x: True)
    config = SimpleNamespace(hidden_size=32, intermediate_size=44, hidden_act="silu")
    mlp = Qwen2_5_VLMLP(config, bias=True)
    widened, x = copy.deepcopy(mlp), torch.randn(5, 32, requires_grad=True)
    align(widened)
    assert widened.gate_proj(x).shape == (5, 48)
    results = [
        (each(x), *torch.autograd.grad(each(x).square().sum(), (x, *each.parameters()))) for each in (mlp, widened)
    ]
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("family", GLM)
def test_positions_of_glm_are_the_librarys(family, model):
    batch = prompts(family, [MIXED[1]])
    types, media = torch.zeros_like(batch.input_ids_N), batch.video_M.tolist()
    runs = (batch.input_ids_N == IMAGE).int().diff(prepend=torch.zeros(1, dtype=torch.int32))
    frames = [kind for kind, t in zip(media, [1, 3, 2]) for _ in range(t)]
    for begin, end, is_video in zip((runs == 1).nonzero(), (runs == -1).nonzero(), frames, strict=True):
        types[begin:end] = 1 + is_video
    theirs, _ = model.model.get_rope_index(
        batch.input_ids_N[None], types[None], batch.image_grid_thw_I3, batch.video_grid_thw_V3
    )
    assert torch.equal(adapter_for(model).positions(batch), theirs[:, 0])
