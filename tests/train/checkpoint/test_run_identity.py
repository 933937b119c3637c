"""A resumed run keeps its global step on any number of ranks, any number of times."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evs.families import spec_of
from tests.evs.models import tiny_model
from tests.runs import composed
from train.checkpoint.run_identity import StepSplit, check_same, shape_of, split_step
from train.config import Config

STEP = 12  # micro-batches
FRAMES = ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels", "max_tokens")
ENGINES = ("none", "ddp", "zero1", "zero2", "zero3", "zero3_offload")


@pytest.fixture(scope="module")
def config() -> Config:
    return composed("+experiment=demo", "model.path=m", "data.train=d", "train.steps=1")


def shape(config: Config) -> dict[str, Any]:
    """What a checkpoint of this configuration says of its run."""
    return shape_of(config, StepSplit(1, 2, (2,)), tiny_model("qwen2_5_vl"))


@pytest.mark.parametrize("name", FRAMES)
def test_a_run_is_identified_by_every_setting_that_changes_its_frames_or_rows(config, name):
    before, after = shape(config), shape(replace(config, data=replace(config.data, **{name: 7})))
    assert [key for key in before if before[key] != after[key]] == ["frames"]


def test_engines_that_write_the_same_state_may_resume_each_other(config):
    engines = {name: replace(config.engine, name=name) for name in ENGINES}
    state = {name: shape(replace(config, engine=engine))["engine"]["state"] for name, engine in engines.items()}
    assert state["none"] == state["ddp"] and state["zero3"] == state["zero3_offload"]
    assert len({*state.values()}) == 4


def test_lora_without_targets_is_identified_by_those_of_its_family(config):
    lora = replace(config.model, lora=replace(config.model.lora, r=4))
    targets = spec_of(tiny_model("qwen2_5_vl").config).lora_targets
    assert shape(replace(config, model=lora))["model"]["lora"]["targets"] == targets


def saved(split: StepSplit) -> dict[str, Any]:
    return {"plan": {"places": split.micro_batches}, "world": {**asdict(split), "requested": list(split.requested)}}


def resumed(shape: dict[str, Any] | None, ranks: int, accumulation: int, *changes: str) -> dict[str, Any]:
    """The shape that the next checkpoint holds. ValueError where the resume is refused."""
    split = saved(split_step(accumulation, ranks, shape, changes))
    if shape is not None:
        check_same(shape, split, changes, "step_1")
    return split


@given(st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]), min_size=2, max_size=8))
def test_the_same_command_keeps_the_global_step_on_any_ranks(ranks):
    shape = None
    for world in ranks:
        shape = resumed(shape, world, STEP // ranks[0])
        assert (shape["plan"]["places"], shape["world"]["accumulation"]) == (STEP, STEP // world)


@given(st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]), min_size=2, max_size=8))
def test_the_accumulation_that_keeps_the_global_step_may_be_given(ranks):
    shape = None
    for world in ranks:
        shape = resumed(shape, world, STEP // world)
        assert shape["plan"]["places"] == STEP
    for world in ranks:  # commands that started an earlier part
        shape = resumed(shape, world, STEP // ranks[0])
        assert shape["plan"]["places"] == STEP


@pytest.mark.parametrize("left", [(), ("plan",)], ids=["removed", "left in the command"])
def test_another_accumulation_is_the_new_global_step_once_it_is_allowed(left):
    shape = resumed(resumed(None, 2, 1), 1, 1)
    with pytest.raises(
        ValueError, match=r"plan.places was 2, is 4\): keep the global step with train.accumulation=2, "
    ):
        resumed(shape, 1, 4)
    shape = resumed(shape, 1, 4, "plan")
    for ranks in (1, 2, 4, 1):
        shape = resumed(shape, ranks, 4, *left)
        assert shape["plan"]["places"] == 4
    assert resumed(shape, 1, 2, "plan")["plan"]["places"] == 2


def test_ranks_that_do_not_divide_the_global_step_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"plan.places was 2, is 3\): start a number of ranks that divides 2, "):
        resumed(resumed(None, 2, 1), 3, 1)


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 1), (2, 1), (2, 2), (4, 4)])
def test_checkpoints_without_requests_are_resumed(ranks, accumulation):
    shape = {"plan": {"places": 4}, "world": {"ranks": 2, "accumulation": 2}}
    if ranks == 2 and accumulation == 1:  # as before, this would be another global step
        with pytest.raises(ValueError, match=r"keep the global step with train\.accumulation=2"):
            resumed(shape, ranks, accumulation)
    else:
        assert resumed(resumed(shape, ranks, accumulation), 1, accumulation)["plan"]["places"] == 4
