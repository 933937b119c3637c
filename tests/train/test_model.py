"""Checkpointing and compiling change the cost of a step, never what it learns."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from evs import FrameDelta
from evs.families import adapter_for, spec_of
from evs.sequence_parallel import SequenceGroup, exchanges
from scripts.make_tiny_model import make
from tests.evs.models import BUILDERS, MIXED, prompts, tiny_model
from train.config import LoraConfig, ModelConfig
from train.model import base_model, build_model, exchange_heads, fit_for_training
from train.task import TrainRequest, UptrainTask

QWEN35 = ["qwen3_5", "qwen3_5_moe"]
FROZEN = {
    "vision": "model.visual.",
    "merger": "model.visual.merger.",
    "language": ("model.language_model.", "lm_head."),
}


def recomputed(model):
    return {
        name
        for name, tower in (("vision", model.model.visual), ("language", model.model.language_model))
        if any(getattr(module, "gradient_checkpointing", False) for module in tower.modules())
    }


@pytest.mark.filterwarnings("error:.*checkpointing_enable")
@pytest.mark.parametrize("towers", [["vision"], ["language"], ["vision", "language"]])
def test_layers_are_recomputed_in_the_chosen_towers_alone(checkpoint, towers):
    config = ModelConfig(path=str(checkpoint("qwen2_5_vl")), checkpoint_towers=towers)
    assert recomputed(build_model(config, torch.float32)) == set(towers)


@pytest.mark.parametrize(("family", "trained"), [("qwen3_5", True), ("nemotron_h_omni", False)])
def test_lora_leaves_out_a_projection_whose_weight_a_kernel_reads_directly(checkpoint, family, trained):
    model = build_model(ModelConfig(path=str(checkpoint(family)), lora=LoraConfig(r=2)), torch.float32)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(any(f".{module}_proj" in name for name in names) for module in ("q", "o", "in", "up"))
    assert any(".out_proj." in name for name in names) == trained


def given_gradients(model, family):
    """Parameters that a step's backward pass reaches."""
    task = UptrainTask(model, adapter_for(base_model(model)), FrameDelta()).train()
    task(prompts(family, MIXED), TrainRequest((0.5,))).loss_sum.backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(r=2)], ids=["full", "lora"])
@pytest.mark.parametrize("family", BUILDERS)
def test_a_frozen_tower_is_never_recomputed_nor_gone_through_backward(family, lora):
    """Whether the library's checkpointing makes embeddings of its input require gradients or not."""
    model = fit_for_training(tiny_model(family), ModelConfig(freeze=["vision"], lora=lora))
    through = []
    spec = spec_of(base_model(model).config)
    for name, module in base_model(model).named_modules():
        if spec.group_of(f"{name}.") == "vision" and not any(each.requires_grad for each in module.parameters()):
            module.register_forward_hook(lambda *about: through.append(getattr(about[-1], "requires_grad", False)))
    UptrainTask(model, adapter_for(base_model(model)), FrameDelta()).train()(
        prompts(family, MIXED), TrainRequest((0.5,))
    )
    assert through and not any(through)


def step_of(task):
    """(number of tensors that the device keeps for the backward pass of a step, its gradients)."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        out = task(prompts("qwen3_vl", MIXED), TrainRequest((0.5,)))
    out.loss_sum.backward()
    return len(kept), {name: parameter.grad for name, parameter in task.named_parameters()}


def test_offloaded_inputs_of_layers_leave_the_device_and_give_the_same_gradients():
    models = [fit_for_training(tiny_model("qwen3_vl"), ModelConfig(freeze=["vision", "merger"])) for _ in range(2)]
    plain, offloaded = (
        step_of(UptrainTask(model, adapter_for(model), FrameDelta(), offload=offload).train())
        for model, offload in zip(models, (False, True))
    )
    assert offloaded[0] <= plain[0] - len(models[0].model.language_model.layers)
    torch.testing.assert_close(offloaded[1], plain[1], atol=0, rtol=0)


@pytest.mark.parametrize("family", QWEN35)
@pytest.mark.parametrize("freeze", [["vision"], ["vision", "merger"], ["language"]], ids="-".join)
def test_freezing_takes_the_named_towers_of_qwen35_out_of_training_and_no_other(family, freeze):
    model = fit_for_training(tiny_model(family), ModelConfig(freeze=freeze))
    frozen = {name for tower in freeze for name, _ in model.named_parameters() if name.startswith(FROZEN[tower])}
    if "merger" not in freeze:
        frozen = {name for name in frozen if not name.startswith(FROZEN["merger"])}
    assert frozen and given_gradients(model, family) == {name for name, _ in model.named_parameters()} - frozen


@pytest.mark.parametrize("family", QWEN35)
def test_lora_trains_every_projection_of_qwen35s_language_model_and_no_router(family):
    bare = tiny_model(family)
    layers = {name for name, module in bare.named_modules() if isinstance(module, nn.Linear) and "language_" in name}
    routers = {name for name in layers if name.endswith("shared_expert_gate")}
    reached = given_gradients(fit_for_training(bare, ModelConfig(lora=LoraConfig(r=2))), family)
    assert {name.removeprefix("base_model.model.").split(".lora_")[0] for name in reached} == layers - routers
    assert any("linear_attn.in_proj_qkv" in name for name in reached) and bool(routers) == (family == "qwen3_5_moe")


def test_lora_trains_a_router_that_its_targets_name():
    lora = LoraConfig(r=2, targets=r".*language_model.*shared_expert_gate")
    reached = given_gradients(fit_for_training(tiny_model("qwen3_5_moe"), ModelConfig(lora=lora)), "qwen3_5_moe")
    assert reached and all("shared_expert_gate.lora_" in name for name in reached)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_layers_give_the_same_hidden_states(tmp_path, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # else a pool of processes
    config = ModelConfig(path=str(make("qwen2_5_vl", tmp_path, text_layers=1)), gradient_checkpointing=False)
    plain = build_model(config, torch.float32)
    config.compile = True
    compiled = build_model(config, torch.float32)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for length in (7, 12):
        embeds = torch.randn(1, length, plain.config.get_text_config().hidden_size)
        states = [model.model.language_model(inputs_embeds=embeds).last_hidden_state for model in (plain, compiled)]
        torch.testing.assert_close(*states, atol=1e-4, rtol=1e-4)


def test_truncated_weights_are_named_in_one_line(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("qwen2_5_vl"), tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or corrupt, .* download it again") as error:
        build_model(ModelConfig(path=str(folder)), torch.float32)
    assert "\n" not in str(error.value)


def test_a_model_with_custom_code_is_refused_and_its_code_never_runs(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    automap = {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "unknown", "auto_map": automap}))
    with pytest.raises(ValueError, match="custom code, which is never run") as error:
        build_model(ModelConfig(path=str(folder)), torch.float32)
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()


def replaced_attention(name):
    """A model whose attention transformers replaced by another function, as by a kernel of the Hub."""

    def ignoring(*args, head_exchange=None, **kwargs):
        return ALL_ATTENTION_FUNCTIONS["sdpa"](*args, **kwargs)

    AttentionInterface.register(name, ignoring)
    model = tiny_model("qwen2_5_vl")
    model.config.get_text_config()._attn_implementation = name
    return model


def test_heads_are_exchanged_by_the_attention_that_was_loaded():
    exchange_heads(replaced_attention("flash_replaced"))
    assert exchanges(ALL_ATTENTION_FUNCTIONS["flash_replaced"])


def test_attention_that_ignores_the_exchange_is_refused():
    adapter = adapter_for(replaced_attention("flash_ignoring"))
    embedded, group = adapter.embed_prompt(prompts("qwen2_5_vl", [[7]])), SequenceGroup(None, 0, 2)
    own = group.own_slice(7)
    x = replace(embedded, embeds_ND=embedded.embeds_ND[own.begin : own.end])
    with pytest.raises(ValueError, match="attention flash_ignoring does not exchange heads"):
        adapter.decode(x, group)
