"""Views that teach one another: what the objective is, who gets a gradient, and what is refused."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig as Lora
from peft import get_peft_model
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.flop_counter import FlopCounterMode

from evs import FrameDelta
from evs.families import adapter_for, towers_of
from tests.evs.models import MIXED, prompts, tiny_model
from tests.runs import composed, rows, trained
from tests.train.test_views import counted_calls, gradients, task
from train.build import prepare
from train.checks import check
from train.config import TOWERS, DistillConfig
from train.cost import operations as cost
from train.export.card import in_views
from train.losses.objective import build_objective
from train.task import EvalRequest, TrainRequest, UptrainTask

RATES = (0.0, 0.4, 0.8)


def distilling(family="qwen2_5_vl", lora=None, **config):
    model = tiny_model(family)
    adapter = adapter_for(model)
    if lora is not None:
        torch.manual_seed(0)
        model = get_peft_model(model, Lora(r=2, target_modules=lora, init_lora_weights=False))
    return UptrainTask(model, adapter, FrameDelta(), DistillConfig(**config)).train()


def logits(task, batch, rate):
    return task.eval()(batch, EvalRequest((rate,)))[0].logits_TV


def divergence(student, teacher, temperature=1.0, reverse=False):
    student, teacher = ((each / temperature).log_softmax(-1) for each in (student, teacher.detach()))
    one, other = (teacher, student) if reverse else (student, teacher)
    return temperature**2 * kl_div(one, other, reduction="sum", log_target=True)


def slope(task, loss):
    task.zero_grad()
    loss.backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in task.parameters() if p.requires_grad]
    return torch.cat([grad.flatten() for grad in grads])


def assert_close(one, other):
    assert (one - other).norm() <= 1e-4 * other.norm()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_5", "nemotron_h_omni"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("both", [True, False], ids=["teacher trained", "teacher alone"])
def test_distill_is_cross_entropy_and_divergence_from_the_least_pruned_view(family, direction, both):
    it = distilling(family, weight=0.7, temperature=2.0, direction=direction, train_teacher=both)
    batch = prompts(family, MIXED)
    labels = batch.labels_N[batch.labels_N != -100]
    teacher, *students = (logits(it, batch, rate) for rate in RATES)
    losses = [cross_entropy(each, labels, reduction="sum") for each in students]
    losses += [0.7 * divergence(each, teacher, 2.0, direction == "reverse") for each in students]
    if both:
        losses.append(cross_entropy(teacher, labels, reduction="sum"))
    expected = slope(it, sum(losses) / (len(students) + both))
    out = it.train()(batch, TrainRequest(RATES))
    torch.testing.assert_close(out.loss_sum, sum(losses) / (len(students) + both), atol=1e-3, rtol=1e-4)
    assert len(out.losses_K) == len(out.kept) == len(RATES) and set(out.divergences) == {"view"}
    assert_close(slope(it, out.loss_sum), expected)


def test_distill_of_weight_zero_is_plain_views_to_the_bit():
    batch = prompts("qwen3_vl", MIXED)
    plain = gradients(task("qwen3_vl"), (batch, TrainRequest(RATES)))
    zero = gradients(
        distilling("qwen3_vl", temperature=3.0, direction="reverse", train_teacher=False), (batch, TrainRequest(RATES))
    )
    assert plain[0] == zero[0] and torch.equal(plain[1], zero[1])


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_distill_between_equal_rates_has_no_divergence(direction):
    it, batch = distilling(weight=5.0, direction=direction), prompts("qwen2_5_vl", MIXED)
    out = it(batch, TrainRequest((0.5, 0.5, 0.5)))
    assert out.divergences["view"].abs() < 1e-4
    assert_close(slope(it, out.loss_sum), slope(it, it(batch, TrainRequest((0.5,))).loss_sum))


@pytest.mark.parametrize("family", ["qwen3_vl", "nemotron_h_omni"])
@pytest.mark.parametrize("lora", [r".*language_model.*\.(q_proj|v_proj)", r".*(q_proj|v_proj|qkv|\.proj|lm_head)"])
def test_distill_from_the_base_reads_it_with_the_adapter_off(family, lora):
    batch, base = prompts(family, MIXED), tiny_model(family)
    untouched = UptrainTask(base, adapter_for(base), FrameDelta())
    it = distilling(family, lora, weight=0.5, teacher="base", base_weight=0.25)
    students = [logits(it, batch, rate) for rate in RATES]
    teacher = logits(untouched, batch, RATES[0])
    labels = batch.labels_N[batch.labels_N != -100]
    losses = [cross_entropy(each, labels, reduction="sum") + 0.5 * divergence(each, teacher) for each in students]
    losses.append(0.25 * divergence(students[0], teacher))
    expected = slope(it, sum(losses) / len(RATES))
    out = it.train()(batch, TrainRequest(RATES))
    torch.testing.assert_close(out.loss_sum, sum(losses) / len(RATES), atol=1e-3, rtol=1e-4)
    assert_close(slope(it, out.loss_sum), expected)
    assert all(p.requires_grad == ("lora_" in name) for name, p in it.model.named_parameters())


@pytest.mark.parametrize("alone", [True, False])
def test_distill_looks_once_and_a_teacher_alone_has_no_gradient(alone):
    it, batch = distilling(weight=1.0, train_teacher=not alone), prompts("qwen2_5_vl", MIXED)
    looks, reads = (counted_calls(module) for module in towers_of(it.model)[:2])
    out = it(batch, TrainRequest((0.0, 0.8)))
    assert len(looks) == 1 and len(reads) == 2
    (hidden,) = torch.autograd.grad(out.loss_sum, [next(towers_of(it.model).vision.parameters())])
    assert hidden.any()


@pytest.mark.parametrize("teacher", ["view", "base"])
def test_distill_costs_a_forward_pass_of_the_language_model_for_its_teacher(teacher):
    def counted(task):
        with FlopCounterMode(display=False) as counter:
            task(batch, TrainRequest(rates)).loss_sum.backward()
        return counter.get_total_flops()

    batch, rates = prompts("qwen3_vl", [[3, ("video", (6, 8, 8)), 9]]), (0.5, 0.75)
    lora = r".*language_model.*q_proj" if teacher == "base" else None
    plain, teaching = distilling("qwen3_vl", lora), distilling("qwen3_vl", lora, weight=1.0, teacher=teacher)
    teaching.distill.train_teacher = teacher == "base"
    kept = plain(batch, TrainRequest(rates)).kept
    works = [cost.batch_work([tuple(grid) for grid in batch.video_grid_thw_V3.tolist()], [n], 3) for n in kept]
    trained = {"lora": True, "frozen": TOWERS} if lora else {}
    once, taught = (
        cost.training_in_views(plain.adapter.model.config, works, schedule, **trained).total
        for schedule in (cost.ONE_VIEW, cost.StepSchedule(no_grad_teacher=teacher == "view", base=teacher == "base"))
    )
    assert (once < taught) == (teacher == "base")
    assert counted(teaching) / counted(plain) == pytest.approx(taught / once, rel=0.03)


def test_distill_under_autocast_gives_every_weight_its_gradient():
    it, batch = distilling(weight=1.0, train_teacher=False), prompts("qwen2_5_vl", MIXED)
    whole = slope(it, it(batch, TrainRequest((0.0, 0.8))).loss_sum)
    with torch.autocast("cpu", torch.bfloat16):
        loss = it(batch, TrainRequest((0.0, 0.8))).loss_sum
    assert (slope(it, loss) - whole).norm() < 0.1 * whole.norm()


def test_distill_refuses_a_teacher_that_is_pruned_more_than_its_student():
    for rates in ((0.5, 0.4), ([0.5, 0.1], [0.6, 0.0])):
        with pytest.raises(ValueError, match=r"is pruned more than its student"):
            build_objective(DistillConfig(weight=1.0), rates)
    assert len(build_objective(DistillConfig(weight=1.0), ([0.1, 0.5], [0.1, 0.6])).pairs) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["train.distill.weight=1"], "train.distill.weight=1 needs a second view to teach: set train.views=2"),
        (["train.distill.weight=-1"], "train.distill.weight=-1.0 must be at least 0"),
        (["train.distill.teacher=me"], "train.distill.teacher=me is unknown: use one of view, base"),
        (["train.distill.direction=up"], "train.distill.direction=up is unknown: use one of forward, reverse"),
        (["train.distill.temperature=0"], "train.distill.temperature=0.0 must be above 0"),
        (
            ["train.distill.weight=1", "train.distill.teacher=base"],
            "only with LoRA, by disabling the adapter: set model.lora.r",
        ),
        (
            ["train.distill.base_weight=1", "model.lora.r=4"],
            "needs a view at rate 0: set train.views=2 and train",
        ),
        (["train.anchor_rate=0"], "train.anchor_rate=0.0 fixes the only view: set train.views=2"),
    ],
)
def test_distill_or_views_that_cannot_be_are_one_line(words, given, message):
    with pytest.raises(ValueError, match=message):
        check(composed(*words(*given)))


def test_distill_from_an_anchor_above_its_students_is_refused_before_data_are_read(words):
    config = composed(*words("train.views=2", "train.anchor_rate=0.6", "train.distill.weight=1", "data.train=gone"))
    with pytest.raises(ValueError, match=r"train.anchor_rate=0.6 is above 0, the lowest rate of the other views"):
        prepare(config)


def test_views_and_distill_are_told_on_the_card(words):
    def told(*more):
        return in_views(composed(*words(*more)).train)

    assert told() == ""
    views = ["train.views=2", "train.anchor_rate=0"]
    assert told(*views) == " in 2 views of each video, one of them at rate 0"
    taught = told(*views, "train.distill.weight=0.5", "train.distill.base_weight=2")
    assert "taught by the least pruned view (forward KL times 0.5, temperature 1)" in taught
    assert "(KL times 2)" in taught


@pytest.mark.slow
def test_a_run_with_distill_from_view_and_base_records_the_divergences(words, tmp_path):
    views = ["train.views=2", "train.anchor_rate=0", "train.steps=3", "train.distill.weight=1"]
    trained(*words(*views, "train.distill.base_weight=0.5", "model.lora.r=4", run_dir=tmp_path / "run"))
    found = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert all({"divergence/view", "divergence/base"} <= row.keys() for row in found)
    assert abs(found[0]["divergence/base"]) < 1e-3 < found[0]["divergence/view"]
