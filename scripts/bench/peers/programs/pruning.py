"""Pruning in a framework that loads the model itself: PEERS_RATE is the rate, and 0 leaves the model stock."""

from __future__ import annotations

import os
from typing import Any

from evs.transformers import PruningCallback, enable_pruning


class EnablePruning(PruningCallback):
    """Enables pruning as soon as the trainer has the model, before anything wraps it."""

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        enable_pruning(model, rate=rate(), return_logits=False)


def rate() -> float:
    return float(os.environ["PEERS_RATE"])
