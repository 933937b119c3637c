"""What a run will need is printed before weights are read, and what cannot fit does not start."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from data.batching.plans import Budget, BudgetPlan, Plan
from data.sizes import SampleSize, gather
from evs import FrameDelta
from evs.methods.pixels import PixelDelta
from evs.methods.vidcom2 import VidCom2
from tests.runs import composed, trained
from train.cost.memory_forecast import Estimate, Largest, available, check, estimate, largest

GPU = torch.device("cuda")
SIZES = gather(SampleSize(10 * i, ((i, 4),), 16 * i, 2 * i, 5, 256 * i) for i in range(1, 9))


def kept(grids, tokens, rate):
    return np.maximum(tokens, (tokens * grids * (1 - rate)).astype(np.int64))


def test_the_largest_batch_is_a_bound():
    plan = Plan(8, 2, 1, 1, 0, 0)
    assert largest(plan, SIZES, (0.5,), kept) == Largest(80 + 16 + 70 + 14, 80 + 70, 16 * 15, 16)
    assert largest(plan, SIZES, (0.5,), kept, freed=4).patches == 4 * (16 + 14)
    budgeted = BudgetPlan(SIZES, Budget(300), lambda step: [(0.5,)], kept, 1, 0, 0)
    of_budget = largest(budgeted, SIZES, (0.5,), kept)
    assert of_budget.tokens == 300 and 80 <= of_budget.text < 300


@pytest.mark.parametrize("engine", ["none", "zero1", "zero2", "zero3"])
def test_parts_are_shared_as_the_zero_stage_says(words, engine):
    config = composed(*words(f"engine={engine}", "model.freeze=[]", "engine.precision=bf16"))
    hf_config = AutoConfig.from_pretrained(config.model.path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(hf_config, dtype=torch.bfloat16)
    weights = sum(p.numel() for p in model.parameters())
    parts = estimate(config, model, hf_config, Largest(100, 20, 400, 8), world=4, device=GPU)
    assert parts.weights == 2 * weights / (4 if engine == "zero3" else 1)
    assert parts.gradients == 2 * weights / (4 if engine in ("zero2", "zero3") else 1)
    assert parts.optimizer == (4 * weights if engine == "none" else 12 * weights / 4)


def test_offloading_frees_a_gpu_and_not_the_memory_of_a_machine_without_one(words):
    config = composed(*words("engine=zero3_offload"))
    hf_config = AutoConfig.from_pretrained(config.model.path)
    on_gpu, on_cpu = (
        estimate(config, torch.nn.Linear(9, 9), hf_config, Largest(100, 20, 400, 8), world=1, device=torch.device(name))
        for name in ("cuda", "cpu")
    )
    assert (on_gpu.weights, on_gpu.optimizer) == (0, 0) and min(on_cpu.weights, on_cpu.optimizer) > 0


def test_an_average_of_the_weights_is_counted_with_the_optimizer(words):
    model, batch = torch.nn.Linear(1000, 1000, bias=False), Largest(100, 20, 400, 8)
    hf_config = AutoConfig.from_pretrained(composed(*words()).model.path)
    plain, kept = (
        estimate(composed(*words(*more)), model, hf_config, batch, world=1, device=GPU).optimizer
        for more in ([], ["train.ema=0.9"])
    )
    assert kept - plain == 4 * 1_000_000


def test_checkpointing_and_freezing_lower_the_activations(words):
    def activations(*more):
        config = composed(*words(*more))
        hf_config = AutoConfig.from_pretrained(config.model.path)
        return estimate(
            config, torch.nn.Linear(1, 1), hf_config, Largest(100, 20, 400, 8), world=1, device=GPU
        ).activations

    whole = activations("model.gradient_checkpointing=false", "model.freeze=[]")
    frozen = activations("model.gradient_checkpointing=false")
    assert activations() < frozen < whole
    assert activations("train.offload_activations=true") < activations()
    assert activations("model.checkpoint_towers=[vision]") == frozen  # a frozen tower keeps nothing to recompute


def test_ranks_that_share_a_batch_share_its_activations(words):
    def activations(size):
        config = composed(*words("engine=ddp", f"engine.sequence_parallel={size}"))
        hf_config = AutoConfig.from_pretrained(config.model.path)
        batch = Largest(4000, 20, 16000, 800)
        return estimate(config, torch.nn.Linear(1, 1), hf_config, batch, world=2, device=GPU).activations

    assert activations(2) < 0.6 * activations(1)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_every_rank_of_a_group_holds_only_what_a_method_scores_of_the_whole_batch(words, family):
    config = composed(*words("engine=ddp", "engine.sequence_parallel=2", "engine.precision=bf16", family=family))
    hf_config = AutoConfig.from_pretrained(config.model.path)
    batch, model = Largest(4000, 20, 16000, 800), torch.nn.Linear(1, 1)

    def activations(*methods):
        return estimate(config, model, hf_config, batch, world=2, device=GPU, methods=methods).activations

    vision, hidden = hf_config.vision_config, hf_config.get_text_config().hidden_size
    rows = 1 + len(getattr(vision, "deepstack_visual_indexes", ()))  # of a visual token
    pixels = 16000 * 3 * vision.temporal_patch_size * vision.patch_size**2
    assert activations(FrameDelta()) == activations()
    assert activations(FrameDelta(), PixelDelta()) - activations() == pixels
    assert activations(FrameDelta(), VidCom2()) - activations() == 2 * 2 * 4000 * rows * hidden  # sent and received


def test_shares_of_a_batch_are_in_proportion_to_the_ranks(words):
    def activations(size, tokens, patches):
        config = composed(*words("engine=ddp", f"engine.sequence_parallel={size}"))
        hf_config = AutoConfig.from_pretrained(config.model.path)
        batch = Largest(tokens, 16, patches, 800)
        return estimate(config, torch.nn.Linear(1, 1), hf_config, batch, world=8, device=GPU).activations

    assert activations(8, 4096, 16384) - activations(8, 2048, 8192) == pytest.approx(
        (activations(1, 4096, 16384) - activations(1, 2048, 8192)) / 8
    )


def test_what_cannot_fit_is_told_with_a_remedy(words):
    parts = Estimate(weights=4e9, gradients=1e9, optimizer=1e9, activations=2.1e9)
    check(parts, 9e9, composed(*words()))
    with pytest.raises(ValueError, match=r"needs about 7.5 GiB a rank and 4.7 are free: use engine=zero3"):
        check(parts, 5e9, composed(*words()))


@pytest.mark.parametrize(
    ("more", "budget"),
    [
        (["train.token_budget=700"], "lower train.token_budget=700"),
        (["train.batch_size=3"], "lower train.batch_size=3"),
        ([], "lower data.max_pixels=25088 or data.max_frames=8"),
    ],
)
def test_the_budget_to_lower_is_the_one_that_is_set(words, more, budget):
    parts = Estimate(weights=1e9, gradients=1e9, optimizer=1e9, activations=2e9)
    with pytest.raises(ValueError, match=budget):
        check(parts, 1e9, composed(*words(*more)))


def test_memory_that_only_caches_files_is_free():
    lines = Path("/proc/meminfo").read_text().splitlines()
    told = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    assert available(torch.device("cpu"), 2) == pytest.approx(told / 2, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["preflight=only", "+preflight=only"])
def test_preflight_only_tells_and_exits(words, tmp_path, capsys, word):
    trained(*words(word))
    told = capsys.readouterr().out
    assert "largest micro-batch: " in told and "longest clip: 8 frames" in told and "peak memory, GiB a rank" in told
    assert not (tmp_path / "run").exists()
