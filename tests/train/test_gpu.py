"""What only a GPU shows: its kernels agree with the CPU's, and every engine trains on it."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path

import pytest
import torch

from evs import FrameDelta, Grid
from evs.losses.fused_head import fused_losses
from evs.losses.objective import mean_objective
from evs.methods.pixels import PixelDelta
from scripts.bench import models
from tests.runs import ended, rows, started
from train.task import TrainRequest

pytestmark = pytest.mark.gpu
GRID, RATES = Grid(16, 12, 12), (0.25, 0.5, 0.75, 0.9)

attentions = pytest.mark.parametrize(
    "attention",
    [
        pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=reason or ""))
        for name in models.KERNELS
        for reason in [models.missing_kernel(name)]
    ],
)


@pytest.mark.parametrize("rate", RATES)
def test_survivors_are_those_of_the_cpu(rate):
    """Exactly with pixels; of features all but those whose scores a last bit of rounding can swap."""
    pixels = torch.randint(0, 256, (GRID.tokens, 4 * 1176), dtype=torch.uint8)
    assert torch.equal(PixelDelta().keep(pixels.cuda(), GRID, rate).cpu(), PixelDelta().keep(pixels, GRID, rate))
    features = torch.randn(GRID.tokens, 2048, dtype=torch.bfloat16)
    for method in (FrameDelta("bfloat16"), FrameDelta()):
        ours, theirs = method.keep(features.cuda(), GRID, rate).cpu(), method.keep(features, GRID, rate)
        assert ours.sum() == theirs.sum()
        assert (ours != theirs).float().mean() < 0.01


@pytest.mark.parametrize("tokens", [1, 100, 3000])
def test_the_fused_head_is_the_plain_one(tokens):
    torch.manual_seed(0)
    hidden = torch.randn(1, tokens, 256, device="cuda", requires_grad=True)
    weight = (torch.randn(4096, 256, device="cuda") / 16).requires_grad_()
    labels = torch.randint(0, 4096, (tokens,), device="cuda")
    logits = (hidden[0] @ weight.T).float()
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    ours, _, correct_K, _ = fused_losses(hidden, weight, labels, mean_objective(1))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-3)
    assert correct_K.sum() == (logits.argmax(-1) == labels).sum()
    for a, b in zip(torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(plain, (hidden, weight))):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-2)


def loss_of(attention: str, rate: float) -> tuple[float, torch.Tensor]:
    """Loss and gradient of the last norm's weight of a small model, in bf16."""
    shape = models.SHAPES["small"]
    model = models.build_model(shape, torch.device("cuda"), torch.bfloat16, attention)
    out = models.our_task(model)(models.build_batch(shape), TrainRequest((rate,)))
    loss = out.loss_sum / out.targets
    loss.backward()
    return loss.item(), model.model.language_model.norm.weight.grad.float()


@attentions
@pytest.mark.parametrize("rate", [0.0, 0.6])
def test_kernels_that_read_the_pack_agree_with_padded_rows(attention, rate):
    ours, padded = loss_of(attention, rate), loss_of("sdpa", rate)
    assert ours[0] == pytest.approx(padded[0], rel=5e-3)
    assert torch.cosine_similarity(ours[1], padded[1], dim=0) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        *(["engine=" + name] for name in ("none", "ddp", "zero1", "zero2", "zero3", "zero3_offload")),
        ["model.compile=true"],
        ["model.lora.r=8"],
        ["engine=zero3", "model.freeze=[]", "train.views=2"],
        ["train.token_budget=4096", "data.workers=2"],
        ["method=pixel_delta", "method.prune_at=input"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_it_trains_and_resumes(words, tmp_path, family, more):
    run = tmp_path / "run"
    for steps in (2, 4):
        given = words(
            "engine.precision=bf16",
            *more,
            "train.save_every=2",
            f"train.steps={steps}",
            "resume=auto",
            run_dir=run,
            family=family,
        )
        status, printed = ended(started(*given))
        assert status == 0, printed[-3000:]
    assert all(isfinite(row["loss"]) for row in rows(run) if "loss" in row)
    done = json.loads(Path(run, "summary.json").read_text())
    assert done["peak_memory_gib"] > 0
