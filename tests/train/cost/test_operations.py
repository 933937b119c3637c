"""The cost model against operations that torch itself counts, and what freezing saves."""

import re
import sys
from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data.batching.sample_cost import DecoderFlops, SampleCost
from data.sizes import SampleSize, gather
from evs import FrameDelta
from evs.families import adapter_for, spec_of
from tests.evs.models import BUILDERS, KERNELS, prompts, tiny_model
from train.cost import operations as cost
from train.optim import freeze
from train.task import TrainRequest, UptrainTask

LAYOUT = [[3, ("video", (6, 4, 4)), 9], [2, ("video", (4, 4, 4)), 30]]


def without_products(q, k, v, *, g, beta, **_):
    return q + k + v * (g + beta)[..., None], None


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize("frozen", [(), ("vision",), ("vision", "merger")])
def test_the_cost_model_counts_what_torch_counts_in_matrix_products(family, frozen, monkeypatch):
    model, batch = tiny_model(family), prompts(family, LAYOUT)
    if family == "qwen3_5":  # its recurrence comes in whole chunks, its samples padded
        batch = prompts(family, LAYOUT[:1])
        monkeypatch.setattr(sys.modules[type(model).__module__], KERNELS[0], without_products)
    freeze(model, spec_of(model.config), list(frozen))
    task = UptrainTask(model, adapter_for(model), FrameDelta()).train()
    with FlopCounterMode(display=False) as counter:
        out = task(batch, TrainRequest((0.5,)))
        out.loss_sum.backward()
    counted = {str(name): n for name, n in counter.get_flop_counts()["Global"].items()}
    products = sum(n for name, n in counted.items() if "attention" not in name and "convolution" not in name)
    grids = [tuple(grid) for grid in batch.video_grid_thw_V3.tolist()]
    work = cost.batch_work(grids, list(out.kept), out.targets)
    without_attention = replace(work, pairs=0, token_pairs=0)  # torch counts it in one kernel and not in the other
    text = spec_of(model.config).text_shape(model.config)
    recurrence = 3 * 2 * work.tokens * 3 * text.recurrent_layers * prod(text.state)
    ours = cost.training(model.config, without_attention, frozen=frozen).total - recurrence
    assert products == pytest.approx(ours, rel=0.05)


def test_lora_pays_for_the_gradients_way_but_not_for_frozen_weights():
    model = tiny_model("qwen2_5_vl")
    work = cost.batch_work([(4, 8, 8)], [100], 10)
    once = cost.forward(model.config, work)
    lora = cost.training(model.config, work, frozen=("vision", "merger", "language"), lora=True)
    assert lora == cost.Operations(once.vision, once.merger, 2 * once.language, 2 * once.head)
    whole = cost.training(model.config, work)
    assert whole == cost.Operations(*(3 * part for part in once))


def test_fewer_tokens_cost_less_and_long_ones_more_than_their_share():
    config = tiny_model("qwen2_5_vl").config
    one, two, four = (cost.forward(config, cost.batch_work([], [n], 0)).language for n in (1000, 2000, 4000))
    assert 2 * one < two and 2 * two < four
    assert torch.tensor([one, two, four]).isfinite().all()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm4v_moe"])
def test_a_token_meets_every_weight_of_the_layers_when_all_experts_are_chosen(family):
    model = tiny_model(family)
    text = model.config.get_text_config()
    text.num_experts_per_tok = getattr(text, "num_experts", getattr(text, "n_routed_experts", None))
    layers = model.model.language_model.layers.parameters()
    assert spec_of(model.config).text_shape(model.config).weights == sum(p.numel() for p in layers if p.ndim > 1)


def test_a_layer_with_a_state_costs_the_same_for_every_token():
    config = tiny_model("qwen3_5").config
    one, two, three = (cost.forward(config, cost.batch_work([], [n], 0)).language for n in (1000, 2000, 3000))
    full = 4 * 1000 * 1000 * 16 * 2  # what the one attending layer adds: pairs, width of a head, heads
    assert three - two - (two - one) == full


def test_the_cost_of_samples_side_by_side_adds_up_to_their_batch():
    config = tiny_model("qwen2_5_vl").config
    grids, lengths, targets = [(4, 8, 8), (2, 24, 16)], [100, 70], [10, 3]
    each = [cost.batch_work([grid], [n], k) for grid, n, k in zip(grids, lengths, targets)]
    many = cost.Work(*(np.array(values) for values in zip(*(vars(work).values() for work in each))))
    whole = cost.training(config, cost.batch_work(grids, lengths, sum(targets)))
    assert cost.training(config, many).total.sum() == pytest.approx(whole.total)


def test_recomputing_a_tower_costs_a_forward_where_backward_goes_through_it():
    config, work = tiny_model("qwen2_5_vl").config, cost.batch_work([(4, 8, 8)], [100], 10)
    once, both = cost.forward(config, work), ("vision", "language")
    extra = cost.training(config, work, recomputed=both).total - cost.training(config, work).total
    assert extra == pytest.approx(once.vision + once.language)
    frozen = cost.training(config, work, frozen=("vision",), recomputed=both)
    assert frozen.vision == once.vision and frozen.language == 4 * once.language


def test_a_tower_that_drops_tokens_before_a_block_costs_what_its_blocks_see():
    config = tiny_model("qwen2_5_vl").config
    whole = cost.batch_work([(4, 8, 8)], [80], 3)
    at_input, half, at_end = (cost.before_tower(config, whole, 32, block) for block in (0, 1, 3))
    assert (at_input.patches, at_input.pairs) == (whole.patches / 2, whole.pairs / 4)
    assert at_end == whole
    assert at_input.patches < half.patches < whole.patches
    assert 2 * cost.forward(config, at_input).vision < cost.forward(config, whole).vision


@pytest.mark.parametrize(
    ("family", "off"), [("qwen3_vl", 1e-9), ("qwen2_5_vl", 0.02)]
)  # windows shrink by their own rule
@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("frozen", [(), ("vision",)])
def test_the_price_of_a_sample_is_what_its_step_costs_with_a_tower_that_drops(family, off, before, frozen):
    config = tiny_model(family).config
    grids = [(9, 24, 32), (2, 8, 8), (40, 16, 12)]
    sizes = gather(SampleSize(50, ((t, h * w // 4),), t * h * w, 2 * t, 7, t * (h * w) ** 2) for t, h, w in grids)
    price = cost.sample_cost(config, sizes, before, frozen=frozen)
    for place, (t, h, w) in enumerate(grids):
        for share in (0, 0.3, 0.75, 0.9):
            dropped = int(share * t * h * w // 4)
            whole = cost.batch_work([(t, h, w)], [50 + t * h * w // 4 - dropped], 7)
            step = cost.training(config, cost.before_tower(config, whole, dropped, before), frozen=frozen)
            assert price(np.array([place]), np.array([[whole.tokens]]))[0] == pytest.approx(step.total, rel=off)


def test_an_image_smaller_than_a_window_attends_to_itself_alone():
    config = tiny_model("qwen2_5_vl").config
    tower, work = spec_of(config).tower_shape(config), cost.batch_work([(1, 2, 2)], [], 0)
    assert tower.window_patches > work.patches
    attention = 4 * work.pairs * tower.blocks * tower.width
    assert cost.forward(config, work).vision == 2 * work.patches * tower.weights + attention


def test_the_automatic_budget_holds_the_dearest_sample():
    cost_of = SampleCost(np.array([1.0, 1.0, 100.0]), (DecoderFlops(1.0, 0.0),))
    tokens = np.full((1, 3), 10)
    assert cost.budget(cost_of, tokens, 100) == pytest.approx(0.9 * 100 * 132 / 30)
    assert cost.budget(cost_of, tokens, 10) == 110


@pytest.mark.parametrize("family", BUILDERS)
def test_a_token_and_a_patch_pass_through_every_matrix_of_the_merger_and_the_tower(family):
    model = tiny_model(family)
    spec, counted = spec_of(model.config), {"vision": 0, "merger": 0}
    tower = spec.tower_shape(model.config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not re.search("pos|patch_projection|cls_register", name):
            counted[spec.group_of(name)] = counted.get(spec.group_of(name), 0) + parameter.numel()
    if family == "nemotron_h_omni":  # it has two patch embeddings, one of which a patch passes through
        counted["vision"] += model.vision_model.embeddings.video_patch_projection.weight.numel()
    assert (tower.weights, tower.merger_weights) == (counted["vision"], counted["merger"])
