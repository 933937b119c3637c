"""Pruning in a framework that loads the model itself: PEERS_RATE is a rate or "uniform"; 0: the stock model."""

from __future__ import annotations

import os
from typing import Any

from evs import Uniform
from evs.transformers import PruningCallback, enable_pruning

RATE = os.environ["PEERS_RATE"]


class EnablePruning(PruningCallback):
    """Enables pruning as soon as the trainer has the model, before anything wraps it."""

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        enable_pruning(model, rate=Uniform(0, 0.9) if RATE == "uniform" else float(RATE), return_logits=False)


def callbacks() -> list[EnablePruning]:
    return [] if RATE == "0" else [EnablePruning()]
