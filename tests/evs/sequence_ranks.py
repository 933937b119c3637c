"""`python -m tests.evs.sequence_ranks RANKS S [FAMILY ...]`: groups of S ranks take the training steps of one process.

Every rank takes each step twice, alone and with its group, and compares the losses and the gradients.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from evs import FrameDelta
from evs.families import adapter_for, spec_of
from evs.families.qwen.qwen2_5_vl import Qwen25VL
from evs.methods.base import Method
from evs.methods.baselines import RandomTokens
from evs.methods.pixels import PixelDelta
from evs.methods.vidcom2 import VidCom2
from evs.pipeline import EncodedBatch
from evs.pruning import keep_mask
from evs.sequence_parallel import SequenceGroup
from evs.shared_tower import SharedMedia
from tests.evs import models
from train.model import exchange_heads
from train.task import TrainRequest, UptrainTask

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "glm4v", "qwen3_vl_moe", "glm4v_moe")
TEXT_ONLY = [[7]]
SINGLE = [[3, ("video", (5, 3, 3)), 6]]
STEPS = [  # batch, rates of its views
    *((layout, (rate,)) for layout in (models.MIXED, SINGLE) for rate in (0.0, 0.5, 0.9)),
    (models.MIXED, ([0.0, 0.5, 0.9, 0.7],)),  # per video
    (TEXT_ONLY, (0.5,)),
    ([[1]], (0.5,)),  # fewer tokens than ranks, and no label
    (models.MIXED, (0.0, 0.6)),  # two views
]

EARLY = [(models.MIXED, (0.5,)), (SINGLE, (0.9,)), (TEXT_ONLY, (0.5,))]  # at .9 not every rank has a kept token


def widen() -> None:
    """Give the tiny models 4 heads of attention and 2 of keys."""
    models.TEXT.update(num_attention_heads=4, num_key_value_heads=2, hidden_size=64)
    for tower in (models.TOWER, models.TOWER_3, models.GLM_TOWER):
        tower.update(out_hidden_size=64)


def smaller(model: Any) -> Any:
    """The model with half its weights, which amplify rounding less."""
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    return model


def compare(family: str, group: SequenceGroup, method: Method, steps: Sequence[Any] = STEPS) -> None:
    alone, shared = (
        UptrainTask(model := smaller(models.tiny_model(family)), adapter_for(model), method, group=own).train()
        for own in (None, group)
    )
    for number, (layout, rates) in enumerate(steps):
        batch, request = models.prompts(family, layout, seed=number), TrainRequest(rates)
        if method.needs == "pixels":
            batch = with_levels(batch)
        outs, grads = [], []
        for task in (alone, shared):
            task.zero_grad()
            out = task(batch, request)
            out.loss_sum.backward()
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in task.parameters()]
            outs.append(out)
            grads.append(torch.cat([part.flatten() for part in parts]))
        dist.all_reduce(grads[1], group=group.process_group)
        what = f"{family}, {method.name} at {method.prune_at}, step {number}"
        one, other = outs
        assert (one.targets, one.tokens, one.kept) == (other.targets, other.tokens, other.kept), what
        torch.testing.assert_close(other.loss_sum, one.loss_sum, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other.losses_K, one.losses_K, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other.correct_K, one.correct_K)
        error, size = (grads[1] - grads[0]).norm(), grads[0].norm()
        if dist.get_rank() == 0:
            relative = error / size.clamp_min(1e-9)
            print(f"{what}: loss {one.loss_sum:.6f} {other.loss_sum:.6f}, gradient {size:.2e}, error {relative:.1e}")
        assert error <= 1e-5 * size, (what, float(error), float(size))
        for task, grad in zip((alone, shared), grads):
            with torch.no_grad():
                for p, part in zip(task.parameters(), grad.split([p.numel() for p in task.parameters()])):
                    p.sub_(part.view_as(p), alpha=1e-3 / max(1.0, float(size)))


def with_levels(batch: models.Prompts) -> models.Prompts:
    """The prompts with normalised levels of uint8 as pixels, which methods of pixels score."""
    rows = batch.pixel_values_videos
    levels = None if rows is None else (rows * 64 + 128).clamp(0, 255).round() / 127.5 - 1
    return replace(batch, pixel_values_videos=levels, video_normal=((0.5,) * 3, (0.5,) * 3))


class CoarseTower(Qwen25VL):
    """Features are a few rounded pixels, so that many scores are equal."""

    def tower(self, batch: Any, *_: Any) -> tuple[torch.Tensor]:
        pixels = [rows for rows in (batch.pixel_values, batch.pixel_values_videos) if rows is not None]
        return (torch.cat(pixels or [torch.zeros(4, 96)]).unflatten(0, (-1, 4))[:, 0, :4].round().repeat(1, 16),)


def compare_masks(group: SequenceGroup, cases: int = 1000) -> None:
    """The group keeps the tokens that one rank keeps, of random images and clips."""
    model, random = models.tiny_model("qwen2_5_vl"), torch.Generator().manual_seed(0)
    adapter = CoarseTower(model, spec_of(model.config))
    methods = (FrameDelta(), FrameDelta("bfloat16"), VidCom2("bfloat16"), RandomTokens())
    for case in range(cases):
        shapes = torch.randint(1, 5, (case % 4 + 1, 3), generator=random).tolist()
        kinds = torch.randint(0, 3, (len(shapes),), generator=random).tolist()
        media = [("video", (t, h, w)) if kind else ("image", (1, h, w)) for kind, (t, h, w) in zip(kinds, shapes)]
        batch = models.prompts("qwen2_5_vl", [[1, *media, 4]], seed=case)
        rates = torch.rand(len(batch.video_grid_thw_V3), generator=random).mul(0.99).tolist()
        method, embedded = methods[case % len(methods)], adapter.embed_prompt(batch)
        _, features = adapter.encode_media(batch, embedded)
        alone = keep_mask(embedded, features, adapter.grids(batch), rates, method)
        shared = SharedMedia(adapter, batch, group).keep_mask(embedded, rates, method)
        assert torch.equal(alone, shared), (case, method, media, rates)


def compare_operations(group: SequenceGroup) -> None:
    """Each rank's share of the operations of the vision tower."""
    model = models.tiny_model("qwen3_vl")
    adapter, batch = adapter_for(model), models.prompts("qwen3_vl", [[1, ("video", (8, 3, 3)), 4]])
    with FlopCounterMode(display=False) as alone:
        adapter.tower(batch)
    with FlopCounterMode(display=False) as shared:
        EncodedBatch(adapter, batch, FrameDelta(), group).prune([0.5], pruned=True)
    assert shared.get_total_flops() * group.size == alone.get_total_flops() > 0


def join(rank: int, ranks: int, size: int, families: Sequence[str], store: str) -> None:
    """Run in each of `ranks` processes."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    process_group, _ = dist.new_subgroups(size)
    group = SequenceGroup(process_group, rank % size, size)
    compare_masks(group)
    compare_operations(group)
    for family in families:
        compare(family, group, FrameDelta())
    compare("qwen2_5_vl", group, PixelDelta("input"), EARLY)
    compare("qwen2_5_vl", group, PixelDelta(1), EARLY)
    dist.destroy_process_group()


def main(ranks: int, size: int, *families: str) -> None:
    torch.set_num_threads(1)
    widen()
    exchange_heads(models.tiny_model("qwen2_5_vl"))  # all families run sdpa
    with TemporaryDirectory() as folder:
        arguments = (ranks, size, families or FAMILIES, f"{folder}/store")
        torch.multiprocessing.start_processes(join, arguments, nprocs=ranks, start_method="fork")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
