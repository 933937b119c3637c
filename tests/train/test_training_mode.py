"""A run trains in training mode from its first step to its last, whatever came before a step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from torch import nn

from tests.runs import composed
from train.build import build_run
from train.loop import fit

pytestmark = pytest.mark.slow


def watched(*words: str) -> tuple[set[str], Counter[str]]:
    """(modules in evaluation mode while the task trains, calls of the task by mode and of a layer while it trains)."""
    config = composed(*words)
    run = build_run(config)
    assert run is not None
    evaluating: set[str] = set()
    calls: Counter[str] = Counter()
    task = run.task

    def look(module: nn.Module, _: Any) -> None:
        calls["training" if module.training else "evaluation"] += 1
        if module.training:
            evaluating.update(name for name, each in module.named_modules() if not each.training)

    task.register_forward_pre_hook(look)
    layer = next(module for name, module in task.named_modules() if name.endswith("language_model.layers.0.self_attn"))
    layer.register_forward_pre_hook(lambda *_: calls.update(["layer"] * task.training))
    fit(run)
    return evaluating, calls


@pytest.mark.parametrize("more", [[], ["model.lora.r=4"], ["train.save_every=1"]])
def test_training_mode_from_the_first_step_without_evaluation(words, more):
    evaluating, calls = watched(*words("train.steps=2", "train.accumulation=1", *more))
    assert not evaluating
    assert calls["training"] == 2 and calls["layer"] == 4  # forward, and once more in backward


def test_training_mode_after_evaluation_saving_and_resuming(words, questions):
    more = [f"data.eval={questions}", "eval.limit=1", "eval.every=1", "eval.rates=[0.5]", "train.save_every=1"]
    _, calls = watched(*words("train.steps=2", "train.accumulation=1", *more))
    assert calls == {"training": 2, "evaluation": 3, "layer": 4}
    evaluating, calls = watched(*words("train.steps=3", "train.accumulation=1", "resume=auto", *more))
    assert not evaluating and calls == {"training": 1, "evaluation": 1, "layer": 2}
