from __future__ import annotations

import pytest
import torch

from evs.families import spec_of
from tests.evs.models import BUILDERS, tiny_model
from train.config import OptimConfig
from train.optim import build_optimizer, freeze, lr_factor, parameter_groups, set_lr


@pytest.fixture(params=BUILDERS)
def family(request) -> str:
    return request.param


def test_the_rate_warms_up_peaks_and_ends_at_the_final_fraction():
    config = OptimConfig(warmup=10, final_lr=0.1)
    factors = [lr_factor(step, 100, config) for step in range(100)]
    assert factors[:10] == sorted(factors[:10]) and factors[0] > 0
    assert max(factors) == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.1, abs=1e-3)


def test_a_warmup_below_one_is_a_fraction_of_the_steps():
    config = OptimConfig(warmup=0.1)
    assert [lr_factor(s, 100, config) for s in range(100)] == [
        lr_factor(s, 100, OptimConfig(warmup=10)) for s in range(100)
    ]


def test_every_parameter_is_in_one_group_with_its_towers_rate(family):
    model = tiny_model(family)
    groups = parameter_groups(
        model, spec_of(model.config), OptimConfig(lr=1.0, vision_lr=0.1, merger_lr=0.5, weight_decay=0.01)
    )
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(model.parameters()))
    assert {group["tower"]: group["lr"] for group in groups} == {"vision": 0.1, "merger": 0.5, "language": 1.0}
    decay = {p.ndim > 1: group["weight_decay"] for group in groups for p in group["params"]}
    assert decay == {True: 0.01, False: 0.0}  # matrices decay, vectors do not


@pytest.mark.parametrize("tower", ["vision", "merger", "language"])
def test_a_frozen_tower_leaves_the_optimizer(family, tower):
    model = tiny_model(family)
    spec = spec_of(model.config)
    freeze(model, spec, [tower])
    optimizer = build_optimizer(model, spec, OptimConfig())
    names = {id(p): name for name, p in model.named_parameters()}
    towers = {spec.group_of(names[id(p)]) for group in optimizer.param_groups for p in group["params"]}
    assert towers == {"vision", "merger", "language"} - {tower}


def test_scales_that_no_server_reads_are_not_trained():
    model = tiny_model("nemotron_h_omni")
    freeze(model, spec_of(model.config), [])
    still = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert still and all("layer_scale" in name for name in still)


def test_setting_the_rate_scales_every_group_from_its_peak():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "peak_lr": lr, "lr": lr} for p, lr in zip(parameters, (1.0, 0.2))]
    optimizer = torch.optim.AdamW(groups)
    assert set_lr(optimizer, 0.5) == 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
