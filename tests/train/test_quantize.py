"""QLoRA (model.lora.quantize=nf4): which layers are quantized, training, evaluation, resume and export."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from evs.families import spec_of
from tests.runs import composed, cut_off, trained
from tests.train.test_run import metrics
from train.checks import check
from train.config import LoraConfig, ModelConfig
from train.cost.memory_forecast import Largest, estimate
from train.export.weights import write_weights
from train.model import base_model, build_empty_model, build_model
from train.quantize import quantized_layers

INSTALLED = pytest.mark.skipif(not find_spec("bitsandbytes"), reason='needs bitsandbytes: pip install -e ".[qlora]"')
IDS = torch.arange(20, 60)[None]
QLORA = ["model.lora.r=4", "model.lora.quantize=nf4"]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v"])
def test_the_linear_layers_of_the_language_model_are_quantized_and_no_other(checkpoint, family):
    architecture = AutoConfig.from_pretrained(checkpoint(family))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(architecture)
    spec, names = spec_of(architecture), set(quantized_layers(model, spec_of(architecture)))
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert names and all(name.startswith(spec.towers.language) for name in names)
    assert not any(name.startswith(spec.towers.language) and name.endswith("_proj") for name in linear - names)


def test_the_forecast_counts_four_bits(words):
    largest, forecasts = Largest(100, 20, 400, 8), []
    for more in ([], ["model.lora.quantize=nf4"]):
        config = composed(*words("model.lora.r=4", "engine.precision=bf16", *more))
        empty = build_empty_model(config.model, torch.bfloat16)
        hf_config = base_model(empty).config
        forecasts.append(estimate(config, empty, hf_config, largest, world=1, device=torch.device("cuda")).weights)
    weights = sum(layer.weight.numel() for layer in quantized_layers(base_model(empty), spec_of(hf_config)).values())
    assert forecasts[0] - forecasts[1] == pytest.approx(weights * (2 - 0.5159), 1e-3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["engine=zero3"], "engine=zero3 cannot shard 4-bit weights: use ddp, zero1 or zero2"),
        (["model.compile=true"], "cannot be compiled: remove model.compile=true"),
        (["model.lora.r=null"], "model.lora.quantize=nf4 has no effect without LoRA: set model.lora.r"),
    ],
)
def test_what_cannot_be_quantized_is_refused(words, monkeypatch, more, message):
    monkeypatch.setitem(sys.modules, "bitsandbytes", sys.modules["torch"])  # find_spec: as if it were installed
    with pytest.raises(ValueError, match=message):
        check(composed(*words(*QLORA, *more)))


@pytest.mark.skipif(bool(find_spec("bitsandbytes")), reason="bitsandbytes is installed")
def test_the_missing_package_is_named(words):
    with pytest.raises(ValueError, match=r'needs bitsandbytes, which is not installed: pip install -e "\.\[qlora\]"'):
        check(composed(*words(*QLORA)))


def trainable(checkpoint, *, dora: bool = False):
    """(settings, model) of a QLoRA whose adapters change the model."""
    config = ModelConfig(
        path=str(checkpoint("qwen2_5_vl")), lora=LoraConfig(r=4, dropout=0.0, quantize="nf4", dora=dora)
    )
    model = build_model(config, torch.float32)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return config, model


@INSTALLED
@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_export_computes_what_was_trained(checkpoint, tmp_path, dora):
    config, model = trainable(checkpoint, dora=dora)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert layers and all(layer.base_layer.weight.dtype == torch.uint8 for layer in layers)
    model.save_pretrained(tmp_path / "adapter")
    write_weights(config, tmp_path / "adapter", tmp_path / "out")
    exported, base = map(AutoModelForImageTextToText.from_pretrained, (tmp_path / "out", config.path))
    with torch.no_grad():
        ours, of_export, of_base = (part.eval()(input_ids=IDS).logits for part in (model, exported, base))
    torch.testing.assert_close(of_export, ours, rtol=1e-4, atol=1e-4)
    assert (of_base - ours).abs().max() > 0.01


@INSTALLED
@pytest.mark.slow
def test_an_evaluation_does_not_change_the_gradients(checkpoint):
    _, model = trainable(checkpoint)

    def gradients():
        model.train().zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    before = gradients()
    with torch.no_grad():
        model.eval()(input_ids=IDS)
    assert any(grad.any() for grad in before)
    torch.testing.assert_close(gradients(), before)


@INSTALLED
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["none", "zero2"])
def test_a_run_trains_and_resumes(words, tmp_path, engine):
    more = [*QLORA, f"engine={engine}", "train.save_every=2", "model.freeze=[]", "tracker.tensorboard=false"]
    trained(*words(*more, run_dir=tmp_path / "whole"))
    cut_off(tmp_path / "whole", tmp_path / "resumed", step=2)
    trained(*words(*more, "resume=auto", run_dir=tmp_path / "resumed"))
    losses = metrics(tmp_path / "whole", "loss")
    assert len(losses) == 4 and metrics(tmp_path / "resumed", "loss") == losses
