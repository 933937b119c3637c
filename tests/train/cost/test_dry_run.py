"""The dry run measures the largest micro-batch before the first step, and changes nothing of the run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from data.batching.plans import Budget, BudgetPlan, Plan
from data.sizes import SampleSize, gather
from evs import Uniform
from tests.runs import composed, cut_off, trained
from tests.train.cost.test_memory_forecast import SIZES, kept
from tests.train.test_run import metrics
from train.checkpoint.checkpoint import complete
from train.cost.dry_run import Measured, dry_run, largest_micro_batch, report
from train.cost.peak_memory import watch
from train.views import StepRates

TOLD = "dry run of the largest micro-batch, with optimizer states: peak memory"


def test_the_largest_samples_are_taken_together_at_the_lowest_rates():
    rates = StepRates(Uniform(0.25, 0.9), 1, 0)
    found = largest_micro_batch(Plan(8, 3, 1, 1, 0, 0), SIZES, rates, kept)
    assert sorted(found.samples) == [5, 6, 7] and found.rates(rates, [6, 7, 8]) == (0.25,)


def test_samples_with_most_tokens_are_the_largest_and_of_equal_ones_those_with_most_patches():
    sizes = gather(SampleSize(text, (), patches, 0, 1, 0) for text, patches in ((9, 999), (50, 4), (50, 8), (50, 6)))
    rates = StepRates(Uniform(0.25, 0.9), 1, 0)
    assert largest_micro_batch(Plan(4, 2, 1, 1, 0, 0), sizes, rates, kept).samples == (3, 2)


def test_the_largest_micro_batch_of_a_budget_is_one_of_the_plan_at_its_rates():
    rates = StepRates(Uniform(0.0, 0.9), 4, 0)
    plan = BudgetPlan(SIZES, Budget(300), rates, kept, 2, 1, 0)
    found = largest_micro_batch(plan, SIZES, rates, kept)
    assert found.step is not None
    assert found.samples == replace_ranks(plan).micro_batches(found.step)[found.index]
    assert found.rates(rates, []) == rates(found.step)[found.index]
    assert found == largest_micro_batch(replace_ranks(plan), SIZES, rates, kept)


def replace_ranks(plan: BudgetPlan) -> BudgetPlan:
    return BudgetPlan(plan.sizes, plan.budget, plan.rates, plan.kept, 1, 0, plan.seed)


class Hungry(torch.nn.Linear):
    """Allocates more than any machine has."""

    def forward(self, *_: object) -> torch.Tensor:
        return torch.empty(1 << 46)


def test_full_memory_is_one_line_that_names_the_budget(words):
    engine, task = Accelerator(cpu=True), Hungry(2, 2)
    optimizer = engine.prepare(torch.optim.AdamW(task.parameters()))
    attempt = partial(dry_run, engine, task, optimizer, (None, None), memory=watch(engine.device))
    with pytest.raises(ValueError, match=r"does not fit in memory: lower train.token_budget=700$"):
        attempt(config=composed(*words("train.token_budget=700")))


def test_states_that_the_first_step_allocates_are_counted(words):
    config = composed(*words("train.batch_size=3"))
    told = report(Measured(2.0 * 2**30, 2**30), 2.9 * 2**30, 4.0 * 2**30, config)
    assert told == f"{TOLD} 3.00 GiB a rank, forecast 2.90, free 4.00"
    with pytest.raises(ValueError, match=r"needs 3.00 GiB a rank.*free 3.10: lower train.batch_size=3"):
        report(Measured(2.0 * 2**30, 2**30), 2.9 * 2**30, 3.1 * 2**30, config)


def assert_same_run(one: Path, other: Path) -> None:
    """Equal losses, gradient norms and saved weights, bit for bit."""
    for name in ("loss", "grad_norm"):
        assert metrics(one, name) == metrics(other, name)
    newest = complete(one / "checkpoints")[-1]
    files = [path.relative_to(one) for path in newest.rglob("*.safetensors")]
    assert files
    for file in files:
        theirs = load_file(other / file)
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in load_file(one / file).items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["model.lora.r=4", "model.lora.dropout=0.2", "train.batch_size=2"],
        ["train.token_budget=700", "train.ema=0.5", "method=random_tokens"],
        ["train.views=2", "rate=frame_beta", "train.rate_per_video=true"],
    ],
    ids=["lora", "budget", "views"],
)
def test_losses_and_weights_are_those_of_a_run_without_it(words, tmp_path, capsys, more):
    for name in ("off", "dry_run"):
        trained(*words(*more, "train.steps=2", f"preflight={name}", run_dir=tmp_path / name))
    assert TOLD in capsys.readouterr().out
    assert_same_run(tmp_path / "off", tmp_path / "dry_run")


@pytest.mark.slow
def test_a_resumed_run_is_measured_too_and_continues_as_before(words, tmp_path):
    trained(*words("train.save_every=2", "preflight=off", run_dir=tmp_path / "off"))
    cut_off(tmp_path / "off", tmp_path / "dry_run", 2)
    trained(*words("train.save_every=2", "preflight=dry_run", "resume=auto", run_dir=tmp_path / "dry_run"))
    assert_same_run(tmp_path / "off", tmp_path / "dry_run")
