"""Checkpointing and compiling change the cost of a step, never what it learns."""

from __future__ import annotations

import shutil

import pytest
import torch

from train.config import LoraConfig, ModelConfig
from train.model import build_model


def recomputed(model):
    return {
        name
        for name, tower in (("vision", model.model.visual), ("language", model.model.language_model))
        if any(getattr(module, "gradient_checkpointing", False) for module in tower.modules())
    }


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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_layers_give_the_same_hidden_states(checkpoint):
    config = ModelConfig(path=str(checkpoint("qwen2_5_vl")), gradient_checkpointing=False)
    plain = build_model(config, torch.float32)
    config.compile = True
    compiled = build_model(config, torch.float32)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for length in (7, 12):
        embeds = torch.randn(1, length, plain.config.get_text_config().hidden_size)
        states = [model.model.language_model(inputs_embeds=embeds).last_hidden_state for model in (plain, compiled)]
        torch.testing.assert_close(*states, atol=1e-4, rtol=1e-4)
