"""Pruning under what changes or wraps a stock model's modules: checkpointing, compilation, offloading and FSDP2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import accelerate
import pytest
import torch
from torch.testing import assert_close
from transformers import CompileConfig

from evs import Uniform, draw
from evs.families import towers_of
from evs.transformers import enable_pruning
from tests.evs.fsdp2_step import ROWS
from tests.evs.models import tiny_model
from tests.evs.test_transformers import batch_of, enabled, gradients, layout, padded
from tests.runs import ROOT
from train.cli import launcher

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v", "nemotron_h_omni")


def stepped(family: str, model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(loss, gradients) of a model in training mode."""
    out = model.train()(**padded(family, batch_of(family, layout(family))))
    out.loss.backward()
    return out.loss, {name.replace("_orig_mod.", ""): value for name, value in gradients(model).items()}


@pytest.mark.parametrize("first", ["pruning", "checkpointing"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_computes_layers_again_and_changes_no_gradient(family, first, reentrant) -> None:
    loss, expected = stepped(family, enabled(family, 0.6, return_logits=False))
    model, calls = tiny_model(family), []
    if first == "pruning":
        enable_pruning(model, 0.6, scorer_dtype=None, return_logits=False)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    if first == "checkpointing":
        enable_pruning(model, 0.6, scorer_dtype=None, return_logits=False)
    next(towers_of(model).language.layers[0].children()).register_forward_pre_hook(lambda *_: calls.append(1))
    own, own_gradients = stepped(family, model)
    hooked = {name: value for name, value in own_gradients.items() if name in expected}
    assert len(calls) == 2
    assert_close(own, loss)
    assert_close(hooked, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.extended
def test_compiled_layers_and_models_train_alike() -> None:
    loss, expected = stepped("qwen2_5_vl", enabled("qwen2_5_vl", 0.6, return_logits=False))
    model = enabled("qwen2_5_vl", 0.6, return_logits=False)
    layers, blocks = model.model.language_model.layers, model.model.visual.blocks
    for i, layer in enumerate(layers):
        layers[i] = torch.compile(layer, backend="eager")
    for block in blocks:
        block.compile(backend="eager")
    assert_close(stepped("qwen2_5_vl", model), (loss, expected), atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize("first", ["pruning", "compile"])
def test_a_compiled_model_trains_alike(first) -> None:
    loss, expected = stepped("qwen2_5_vl", enabled("qwen2_5_vl", 0.6, return_logits=False))
    model = tiny_model("qwen2_5_vl")
    if first == "compile":
        model.compile(backend="eager")
    enable_pruning(model, 0.6, scorer_dtype=None, return_logits=False)
    if first == "pruning":
        model.compile(backend="eager")
    assert_close(stepped("qwen2_5_vl", model), (loss, expected), atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="OptimizedModule is not a transformers model: call enable_pruning before"):
        enable_pruning(torch.compile(model), 0.6)


@pytest.mark.slow
@pytest.mark.extended
def test_compiled_decoding_with_a_static_cache_gives_the_same_answers() -> None:
    """What generate does by itself on a GPU."""
    inputs = padded("qwen3_vl", batch_of("qwen3_vl", layout("qwen3_vl")))
    del inputs["labels"]
    model, options = enabled("qwen3_vl", 0.6), {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    compiled = CompileConfig(backend="eager", mode=None)
    compiled._compile_all_devices = True
    out = model.generate(**inputs, **options, cache_implementation="static", compile_config=compiled)
    assert torch.equal(out, model.generate(**inputs, **options))


@pytest.mark.parametrize("first", ["pruning", "offload"])
# The stock GLM cannot run with offloaded weights either.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "glm4v"])
def test_offloaded_weights_are_on_no_device_between_calls_and_prune_alike(family, first) -> None:
    inputs, options = padded(family, batch_of(family, layout(family))), {"max_new_tokens": 3, "do_sample": False}
    whole, model = enabled(family, 0.6), tiny_model(family)
    loss, labels = whole(**inputs).loss, inputs.pop("labels")
    if first == "pruning":
        enable_pruning(model, 0.6, scorer_dtype=None)
    accelerate.cpu_offload(model, execution_device="cpu")
    if first == "offload":
        enable_pruning(model, 0.6, scorer_dtype=None)
    assert model.device.type == "meta"
    assert torch.equal(model(**inputs, labels=labels).loss, loss)
    assert torch.equal(model.generate(**inputs, **options), whole.generate(**inputs, **options))


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize("first", ["enable", "prepare"])
def test_two_ranks_under_fsdp2_take_the_steps_of_one_process(tmp_path, first) -> None:
    family, file = "qwen3_vl", tmp_path / "losses.json"
    command = [sys.executable, *launcher(2), "-m", "tests.evs.fsdp2_step", family, first, str(file)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=300)
    name, losses, said = json.loads(file.read_text())
    model = enabled(family, 0.6, return_logits=False).train()
    optimizer, expected = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(2):
        each = [model(**padded(family, batch_of(family, rows))).loss for rows in ROWS]
        (sum(each) / len(each)).backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append([loss.item() for loss in each])
    assert name.startswith("FSDP")
    for own, one in zip(losses, zip(*expected)):
        assert own == pytest.approx(one, abs=1e-5)
    assert said.startswith("a model that FSDP2 shards cannot generate with pruning") and "\n" not in said


@pytest.mark.slow
@pytest.mark.extended
def test_two_ranks_under_ddp_draw_rates_of_their_own_and_again_after_a_resume(tmp_path) -> None:
    command = [sys.executable, *launcher(2), "-m", "tests.evs.ddp_trainer", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=300)
    for rank in range(2):
        kind, logs = json.loads((tmp_path / f"{rank}.json").read_text())
        assert kind == "DistributedDataParallel"
        for name, (whole, resumed) in logs.items():
            assert whole[2:] == resumed[2:], name  # the first two are in the checkpoint, as rank 0 logged them
        for step, rate in enumerate(logs["pruning_rate"][0]):
            drawn = draw(Uniform(0, 0.9), 4, seed=5, step=step)  # two micro-batches of two ranks
            assert rate == pytest.approx(float(drawn[rank::2].mean()))
