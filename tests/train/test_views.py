"""One look at a batch read at several rates trains as separate passes at these rates do, and costs one look."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from data.sizes import SampleSize, gather
from evs import Beta, Choice, Curriculum, FrameDelta, Mixture, Uniform, draw
from evs.families import adapter_for, towers_of
from evs.methods.base import depth
from evs.methods.pixels import PixelDelta
from tests.evs.models import BUILDERS, MIXED, QWEN, one_row, prompts, tiny_model
from tests.runs import composed, cut_off, rows, trained
from tests.train.test_before_tower import NORMAL, whole
from train.build import build_run
from train.cost import operations as cost
from train.task import TrainRequest, UptrainTask
from train.views import StepRates

RATES = (0.0, 0.4, 0.8)
DISTRIBUTIONS = [
    Uniform(0.1, 0.9),
    Beta(0.7),
    Choice([0.8, 0.1, 0.5], [1, 2, 1]),
    Mixture([Uniform(0.6, 0.9), Uniform(0.0, 0.3)]),
    Curriculum([Uniform(0.0, 0.1), Uniform(0.5, 0.9)], [0, 40]),
]


def task(family, method=None):
    model = tiny_model(family)
    return UptrainTask(model, adapter_for(model), method or FrameDelta()).train()


def gradients(task, *passes):
    """(summed loss, gradients) of some passes."""
    task.zero_grad()
    outs = [task(*each) for each in passes]
    sum(out.loss_sum for out in outs).backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in task.parameters()]
    return sum(out.loss_sum.detach() for out in outs), torch.cat([grad.flatten() for grad in grads])


def counted_calls(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def assert_same(one, other, views):
    torch.testing.assert_close(views * one[0], other[0], atol=1e-3, rtol=1e-4)
    assert (views * one[1] - other[1]).norm() <= 1e-4 * other[1].norm()


@pytest.mark.parametrize("family", BUILDERS)
def test_views_of_one_look_train_as_separate_passes_do(family):
    it, batch = task(family), prompts(family, MIXED)
    apart = gradients(it, *((batch, TrainRequest((rate,))) for rate in RATES))
    looks, reads = (counted_calls(module) for module in towers_of(it.model)[:2])
    assert_same(gradients(it, (batch, TrainRequest(RATES))), apart, len(RATES))
    assert (len(looks), len(reads)) == (1, len(RATES))
    with one_row(it.model):  # the views as segments of one pack
        assert_same(gradients(it, (batch, TrainRequest(RATES))), apart, len(RATES))
    assert (len(looks), len(reads)) == (2, len(RATES) + 1)


@pytest.mark.parametrize("family", QWEN)
def test_views_before_the_tower_train_as_separate_passes_do_and_look_once_a_rate(family):
    it, batch = task(family, PixelDelta("input")), prompts(family, MIXED)
    batch = replace(batch, pixel_values_videos=whole(batch.pixel_values_videos), video_normal=NORMAL)
    looks = counted_calls(towers_of(it.model).vision)
    for rates in (RATES, (0.0, 0.0, 0.5)):  # under ZeRO 3 the number of looks may not depend on the rates
        looks.clear()
        together = gradients(it, (batch, TrainRequest(rates)))
        assert len(looks) == len(rates)
        assert_same(together, gradients(it, *((batch, TrainRequest((rate,))) for rate in rates)), len(rates))


def test_one_view_is_the_step_of_its_rate_to_the_bit():
    it, batch = task("qwen3_vl"), prompts("qwen3_vl", MIXED)
    plain, view = gradients(it, (batch, TrainRequest((0.6,)))), gradients(it, (batch, TrainRequest((0.6,))))
    assert plain[0] == view[0] and torch.equal(plain[1], view[1])


def test_views_report_each_its_own_loss_and_tokens():
    it, batch = task("qwen2_5_vl"), prompts("qwen2_5_vl", MIXED)
    together, apart = it(batch, TrainRequest(RATES)), [it(batch, TrainRequest((rate,))) for rate in RATES]
    assert together.kept == tuple(kept for out in apart for kept in out.kept)
    assert (together.tokens, together.targets) == (apart[0].tokens, apart[0].targets)
    for name in ("losses_K", "correct_K"):
        expected = torch.cat([getattr(out, name) for out in apart])
        torch.testing.assert_close(getattr(together, name), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("method", [FrameDelta(), PixelDelta("input")], ids=["merger", "input"])
def test_views_save_the_operations_that_the_price_says(method):
    def counted(*passes):
        with FlopCounterMode(display=False) as counter:
            gradients(it, *passes)
        return counter.get_total_flops()

    it, batch = task("qwen3_vl", method), prompts("qwen3_vl", [[3, ("video", (6, 8, 8)), 9]])
    batch = replace(batch, pixel_values_videos=whole(batch.pixel_values_videos), video_normal=NORMAL)
    rates, at = (0.5, 0.75), np.zeros(1, int)
    tokens = np.array([[it(batch, TrainRequest((rate,))).kept] for rate in rates])
    fixed = len(batch.input_ids_N) - 6 * 64
    sizes = gather([SampleSize(fixed, ((6, 64),), 4 * 6 * 64, 12, 3, 6 * 256**2)])
    one, two = (cost.sample_cost(it.model.config, sizes, depth(method), views) for views in (1, 2))
    apart = sum(float(one(at, each[None])[0]) for each in tokens[:, 0])
    expected = float(two(at, tokens[:, 0])[0]) / apart
    measured = counted((batch, TrainRequest(rates))) / counted(*((batch, TrainRequest((rate,))) for rate in rates))
    assert measured == pytest.approx(expected, rel=0.03) and (expected < 0.7) == (depth(method) is None)


@settings(max_examples=30, deadline=None)
@given(views=st.integers(2, 5), places=st.integers(1, 6), step=st.integers(0, 60), seed=st.integers(0, 3))
def test_views_of_a_place_have_one_rate_of_each_share_of_the_distribution(views, places, step, seed):
    drawn = StepRates(Uniform(0.0, 0.9), places, seed, views=views)(step)
    assert len(drawn) == places
    for rates in drawn:
        assert [int(views * rate / 0.9) for rate in rates] == list(range(views))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize(("views", "anchor"), [(1, None), (2, None), (5, None), (3, 0.0), (2, 0.95)])
def test_no_view_is_drawn_below_the_lowest_that_is_planned_for(distribution, views, anchor):
    rates = StepRates(distribution, 3, 0, 64, views, anchor)
    lowest = rates.lowest()
    for step in range(60):
        for drawn in rates(step):
            assert len(drawn) == len(lowest) == views and drawn == tuple(sorted(drawn))
            assert all(rate >= low - 1e-9 for rate, low in zip(drawn, lowest))
            assert anchor is None or anchor in drawn


def test_views_are_drawn_as_one_rate_is_where_there_is_one():
    for step in range(5):
        alone = draw(Uniform(), 4, seed=1, step=step, levels=64).tolist()
        assert StepRates(Uniform(), 4, 1, 64)(step) == [(rate,) for rate in alone]


@pytest.mark.slow
@pytest.mark.parametrize("budget", [[], ["train.token_budget=900", "train.patch_budget=4000"]], ids=["fixed", "budget"])
def test_a_run_with_views_records_them_and_resumes(words, tmp_path, capsys, budget):
    views = ["train.views=2", "train.anchor_rate=0", "tracker.batches=true", "rate.low=0.5", *budget]
    whole = [*views, "train.save_every=2", "optim.warmup=2", "optim.final_lr=1"]
    trained(*words(*whole, run_dir=tmp_path / "whole"))
    cut_off(tmp_path / "whole", tmp_path / "broken", 2)
    trained(*words(*whole, "resume=auto", run_dir=tmp_path / "broken"))
    assert "largest micro-batch" in capsys.readouterr().out
    first, second = (rows(tmp_path / name) for name in ("whole", "broken"))
    assert [row["loss"] for row in first if "loss" in row] == [row["loss"] for row in second if "loss" in row]
    listed = rows(tmp_path / "whole", "batches.jsonl")
    assert listed == rows(tmp_path / "broken", "batches.jsonl")
    assert all(low == 0 and 0.5 <= high < 0.9 for low, high in (row["rates"] for row in listed))
    assert all({"loss/rate_0.0-0.3", "operations"} <= row.keys() for row in first if "loss" in row)
    if budget:
        assert max(row["tokens/after"] for row in first if "loss" in row) <= 2 * 900
    with pytest.raises(ValueError, match=r"views.views was 2, is 3.*resume_changes=\[views\]"):
        build_run(composed(*words(*whole, "resume=auto", "train.views=3", run_dir=tmp_path / "broken")))


def test_views_above_the_budget_are_one_line_that_names_the_sample(words):
    config = composed(*words("train.views=9", "train.token_budget=700"))
    with pytest.raises(ValueError, match=r"token_budget=700 is smaller than sample row\d alone in 9 views: give at le"):
        build_run(config)


@pytest.mark.parametrize("rates", [(0.0,), (0.0, 0.5), (0.3, 0.5)])
def test_views_embed_their_tokens_once_whatever_the_scheme_and_the_rates(rates):
    """Under ZeRO 3 ranks of other rates must call the embedding equally often."""
    model = tiny_model("qwen2_5_vl")
    it = UptrainTask(model, adapter_for(model, "vllm"), FrameDelta()).train()
    calls = counted_calls(model.get_input_embeddings())
    it(prompts("qwen2_5_vl", MIXED), TrainRequest(rates))
    assert len(calls) == 1
