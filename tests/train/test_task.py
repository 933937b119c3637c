"""What the loss is, and what it is not: a matter of rates, of packing, or of how samples are split."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from evs import FrameDelta
from evs.families import adapter_for
from tests.evs.models import BUILDERS, MIXED, alone, prompts, stock_inputs, tiny_model
from train.evaluation.grades import answer_lengths
from train.task import EvalRequest, TrainRequest, UptrainTask, answer_begins, count_targets


@pytest.fixture(params=BUILDERS)
def family(request) -> str:
    return request.param


@pytest.fixture
def task(family) -> UptrainTask:
    model = tiny_model(family)
    return UptrainTask(model, adapter_for(model), FrameDelta())


@pytest.fixture
def batch(family):
    return prompts(family, MIXED)


def test_the_loss_is_the_stock_models_summed_over_labels(family, task, batch):
    one = alone(batch, family, MIXED, 0)
    positions = task.adapter.embed_prompt(one).positions_PN[:, None]
    logits = tiny_model(family)(**vars(stock_inputs(family, one)), position_ids=positions).logits[0]
    expected = cross_entropy(logits[:-1], one.labels_N[1:], reduction="sum", ignore_index=-100)
    torch.testing.assert_close(task(one, TrainRequest((0.0,))).loss_sum, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_pack_loses_what_its_samples_lose_together(family, task, batch, rate):
    packed = task(batch, TrainRequest((rate,)))
    apart = [task(alone(batch, family, MIXED, sample), TrainRequest((rate,))) for sample in range(len(MIXED))]
    torch.testing.assert_close(packed.loss_sum, sum(out.loss_sum for out in apart), atol=1e-3, rtol=1e-4)
    assert packed.targets == sum(out.targets for out in apart) == count_targets([batch])


def test_targets_never_change_with_the_rate(task, batch):
    outs = [task(batch, TrainRequest((rate,))) for rate in (0.0, 0.3, 0.6, 0.9)]
    assert len({out.targets for out in outs}) == 1
    assert [out.kept for out in outs] == sorted({out.kept for out in outs}, reverse=True)


def test_every_video_may_have_a_rate_of_its_own(task, batch):
    videos = len(batch.video_grid_thw_V3)
    assert (
        task(batch, TrainRequest(([0.0] * videos,))).kept
        > task(batch, TrainRequest(([0.9] + [0.0] * (videos - 1),))).kept
    )
    with pytest.raises(ValueError, match="give one rate per video"):
        task(batch, TrainRequest(([0.5],)))


def test_a_batch_without_labels_has_a_zero_loss_and_gradient(task, batch):
    silent = replace(batch, labels_N=torch.full_like(batch.labels_N, -100))
    out = task.train()(silent, TrainRequest((0.5,)))
    out.loss_sum.backward()
    assert out.loss_sum == 0 and out.targets == 0
    assert not any(p.grad.any() for p in task.parameters() if p.grad is not None)


def test_views_of_one_look_equal_a_pass_at_each_rate(task, batch, monkeypatch):
    rates, looks = (0.0, 0.5, 0.9), []
    tower = type(task.adapter).tower
    monkeypatch.setattr(type(task.adapter), "tower", lambda *args: looks.append(1) or tower(*args))
    views = task.eval()(batch, EvalRequest(rates))
    assert len(looks) == 1
    for rate, view in zip(rates, views):
        (alone,) = task(batch, EvalRequest((rate,)))
        torch.testing.assert_close(view.logits_TV, alone.logits_TV, atol=0, rtol=0)
        assert int(view.kept_S.sum()) == sum(task(batch, TrainRequest((rate,))).kept)


def test_an_answer_written_in_a_conversation_is_the_one_that_its_beginning_gets(task, batch):
    """Greedy, so where the model is right token by token it goes on writing what teacher forcing predicts."""
    answers = tuple(range(len(answer_begins(batch.labels_N))))
    for view in task.eval()(batch, EvalRequest((0.0, 0.5), answers, new_tokens=1)):
        lengths = answer_lengths(batch.labels_N)
        firsts = [sum(lengths[:i]) for i in range(len(lengths))]
        assert [tokens[0] for tokens in view.written] == view.logits_TV[firsts].argmax(-1).tolist()
