"""How much longer than the language model the vision tower takes for an operation on this device.

Costs are counted in operations, and a device does not do all of them equally fast: narrow towers, short windows and odd
widths take longer. A few layers of either are timed on samples of the run, before any weight is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from data.encoding.encoder import Encoder
from data.loader import shard_loader
from data.types import Batch
from evs.families import Adapter, adapter_for, towers_of
from train.collectives import on_main
from train.config import Config, LoraConfig
from train.cost import operations as cost
from train.datasets import Usable
from train.model import build_empty_model, weight_dtype

LAYERS = 4  # of each tower: a whole period of hybrid language models
SAMPLES, ROUNDS = 2, 5


def few_layers(config: Config) -> nn.Module:
    """The first layers of the model's towers, without weights. Before an engine that would shard it (ZeRO 3)."""
    model = build_empty_model(
        replace(config.model, lora=LoraConfig(), compile=False, gradient_checkpointing=False), weight_dtype(config)
    )
    for layers in _layers(model):
        del layers[LAYERS:]
    return model


def _layers(model: nn.Module) -> tuple[nn.ModuleList, nn.ModuleList]:
    towers = towers_of(model)
    first, second = (
        next(module for module in tower.modules() if isinstance(module, nn.ModuleList) and len(module))
        for tower in (towers.vision, towers.language)
    )
    return first, second


def measured(engine: Accelerator, model: nn.Module, scheme: str, learned: Usable, encoder: Encoder) -> float:
    """Seconds an operation in the tower over those in the language model, timed on the main rank; the same on all
    ranks. 1 where no sample of those looked at has media. `model`: of `few_layers`, which gets weights."""
    found = on_main(engine, lambda: _measure(engine, model, scheme, learned, encoder))
    return float(broadcast_object_list([found])[0])


def _measure(engine: Accelerator, model: nn.Module, scheme: str, learned: Usable, encoder: Encoder) -> float:
    patches_S = learned.index.sizes.patches_S
    typical = np.argsort(patches_S, kind="stable")[-(1 + len(patches_S) // 4) :][:SAMPLES].tolist()
    (step,) = shard_loader(learned.samples, encoder, [typical])
    batch = step.batches[0]
    if not len(batch.video_grid_thw_V3) + len(batch.image_grid_thw_I3):
        return 1.0
    _draw_weights(model, engine.device)
    with torch.no_grad(), engine.autocast():
        tower, language = _seconds_an_operation(adapter_for(model, scheme), batch)
    model.to("meta")
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()
    print(f"calibrated: {1e-12 / tower:.3g} TFLOP/s in the vision tower, {1e-12 / language:.3g} in the language model")
    return round(tower / language, 3)


def _draw_weights(model: nn.Module, device: torch.device) -> None:
    model.to_empty(device=device)
    for weight in model.parameters():
        weight.data.normal_(std=0.02)
    for buffer in model.buffers():
        buffer.zero_()
    model.train()


def _seconds_an_operation(adapter: Adapter, batch: Batch) -> tuple[float, float]:
    """(tower, language model), forward."""
    config, laid = adapter.model.config, adapter.lay(batch)
    seen, _ = adapter.see(batch, laid)
    grids = torch.cat([batch.image_grid_thw_I3, batch.video_grid_thw_V3]).tolist()
    done = cost.forward(config, cost.batch_work(grids, batch.segment_N.bincount().tolist(), 0))
    tower, language = (
        min(1.0, LAYERS / depth)
        for depth in (cost.vision_shape(config).depth, config.get_text_config().num_hidden_layers)
    )
    return (
        _seconds(lambda: adapter.see(batch, laid), adapter) / (done.vision * tower + done.merger),
        _seconds(lambda: adapter.read(seen), adapter) / (done.language * language),
    )


def _seconds(call: Callable[[], object], adapter: Adapter) -> float:
    """The median of several, after one to warm up."""
    wait = torch.cuda.synchronize if adapter.model.device.type == "cuda" else lambda: None
    taken: list[float] = []
    for _ in range(1 + ROUNDS):
        wait()
        begin = time.perf_counter()
        call()
        wait()
        taken.append(time.perf_counter() - begin)
    return median(taken[1:])
