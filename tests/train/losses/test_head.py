"""The chunked loss is the plain one: values and gradients, whatever the chunk, the dtype and the number of rows."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.flop_counter import FlopCounterMode

from evs.losses.fused_head import fuse_loss, fused_losses
from evs.losses.objective import DistillationPair, Objective, mean_objective
from train.losses.objective import from_logits


def problem(rows, views=1, words=37):
    random = torch.Generator().manual_seed(rows)
    hidden = torch.randn(views, rows, 8, generator=random).requires_grad_()
    weight = torch.randn(words, 8, generator=random).requires_grad_()
    return hidden, weight, torch.randint(0, words, (rows,), generator=random)


@pytest.mark.parametrize("rows", [0, 1, 5, 64])
@pytest.mark.parametrize("chunk", [1, 37 * 3, 2**20])
@pytest.mark.parametrize("views", [1, 3])
def test_loss_and_gradients_are_those_of_the_whole_logits(rows, chunk, views):
    hidden, weight, labels = problem(rows, views)
    each = [cross_entropy(linear(view, weight), labels, reduction="sum") for view in hidden]
    plain = sum(each) / views
    ours, losses_K, correct_K, _ = fused_losses(hidden, weight, labels, mean_objective(views), chunk)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(losses_K, torch.stack(each))
    assert torch.equal(correct_K, (linear(hidden, weight).argmax(-1) == labels).sum(1).float())
    for a, b in zip(torch.autograd.grad(3 * ours, (hidden, weight)), torch.autograd.grad(3 * plain, (hidden, weight))):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_trained_weight_costs_no_product_without_gradients():
    hidden, weight, labels = problem(6)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fused_losses(hidden, weight, labels, mean_objective(1))
    assert counter.get_total_flops() == 2 * 6 * 8 * 37  # the logits alone


def test_autocast_and_a_frozen_weight_are_respected():
    hidden, weight, labels = problem(6)
    with torch.autocast("cpu", torch.bfloat16):
        plain = cross_entropy(linear(hidden[0], weight.detach()).float(), labels, reduction="sum")
        ours, *_ = fused_losses(hidden, weight.detach(), labels, mean_objective(1), 74)
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=0)
    grads = [torch.autograd.grad(loss, hidden)[0] for loss in (ours, plain)]
    assert grads[0].dtype == torch.float32
    torch.testing.assert_close(*grads, atol=2e-2, rtol=2e-2)


def test_logits_are_never_kept_whole():
    hidden, weight, labels = problem(64, words=1000)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        fused_losses(hidden, weight, labels, mean_objective(1), 4000)[0].backward()
    assert max(saved, default=0) < 64 * 1000


def test_a_head_keeps_its_keys_and_its_logits():
    head = nn.Linear(8, 37, bias=False)
    hidden, _, labels = problem(4)
    before = head(hidden)
    assert fuse_loss(head) and list(head.state_dict()) == ["weight"]
    assert torch.equal(head(hidden), before)
    torch.testing.assert_close(
        head(hidden, labels, mean_objective(1)).total, cross_entropy(before[0], labels, reduction="sum")
    )
    assert not fuse_loss(nn.Linear(8, 37))


LESSONS = {
    "view": Objective((0.5, 0.5), (DistillationPair("view", 0, 1, 0.7),), 2.0),
    "teacher without gradient": Objective((0.0, 1.0), (DistillationPair("view", 0, 1, 0.7),), 0.5, reverse=True),
    "base and view": Objective(
        (0.0, 0.5, 0.5), (DistillationPair("view", 1, 2, 3.0), DistillationPair("base", 0, 1, 0.2)), base=True
    ),
}


@pytest.mark.parametrize("name", LESSONS)
@pytest.mark.parametrize("chunk", [1, 37 * 9, 2**20])
def test_distill_in_chunks_is_distill_on_whole_logits(name, chunk):
    about = LESSONS[name]
    hidden, weight, labels = problem(5, len(about.weights))
    states = torch.cat([hidden[: about.no_grad_rows].detach(), hidden[about.no_grad_rows :]])
    plain = from_logits(
        [linear(row, weight if i >= about.no_grad_rows else weight.detach()) for i, row in enumerate(states)],
        labels,
        about,
    )
    ours = fused_losses(hidden, weight, labels, about, chunk)
    for a, b in zip(ours, plain):
        torch.testing.assert_close(a, b)
    grads, expected = (torch.autograd.grad(3 * each.total, (hidden, weight)) for each in (ours, plain))
    for a, b in zip(grads, expected):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
