"""Two steps of a model with pruning enabled in every rank of FSDP2, as accelerate prepares it.

`torchrun -m tests.evs.fsdp2_step FAMILY ORDER FILE`: rank 0 writes its losses, and what generate says, to FILE.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from evs.transformers import enable_pruning
from tests.evs.models import tiny_model
from tests.evs.test_transformers import batch_of, padded

ROWS = ([[3, ("video", (4, 2, 3)), 5]], [[6]])  # of each rank: one has no media


def main(family: str, order: str, file: str) -> None:
    model = tiny_model(family)
    blocks = sorted({type(block).__name__ for name in ("layers", "blocks") for block in _lists(model, name)})
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=blocks,
        cpu_ram_efficient_loading=False,
    )
    accelerator = Accelerator(fsdp_plugin=plugin, cpu=True)
    # accelerate shards on accelerators only; what it does there runs on CPUs too.
    vars(accelerator.state)["distributed_type"], vars(accelerator.state)["fsdp_plugin"] = DistributedType.FSDP, plugin
    if order == "enable":
        enable_pruning(model, 0.6, scorer_dtype=None, return_logits=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    if order == "prepare":
        enable_pruning(model, 0.6, scorer_dtype=None, return_logits=False)
    inputs, losses = padded(family, batch_of(family, ROWS[accelerator.process_index])), []
    for _ in range(2):
        loss = model.train()(**inputs).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    del inputs["labels"]
    said = ""
    try:
        model.generate(**inputs, max_new_tokens=1)
    except ValueError as error:
        said = str(error)
    losses = [values.tolist() for values in accelerator.gather(torch.tensor([losses]))]
    if accelerator.is_main_process:
        Path(file).write_text(json.dumps([type(model).__name__, losses, said]))
    accelerator.end_training()


def _lists(model: torch.nn.Module, name: str) -> list[torch.nn.Module]:
    return [block for key, module in model.named_modules() if key.endswith(f".{name}") for block in module]


if __name__ == "__main__":
    main(*sys.argv[1:])
