"""An exponential moving average of the trained weights, kept in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The average of the trained parameters of `module` by name, which starts at their current values."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.weights: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in self.trained.items()}
        self._mix = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights. Call it once after every step of the optimizer."""
        self._mix(list(self.weights.values()), [p.float() for p in self.trained.values()], 1)

    def into(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """`state` with the average in place of the trained weights, in their dtypes."""
        return state | {name: self.weights[name].to(state[name].dtype) for name in self.weights}

    def save(self, file: Path) -> None:
        save_file(self.weights, str(file))

    @torch.no_grad()
    def load(self, file: Path) -> None:
        for name, tensor in load_file(str(file)).items():
            self.weights[name].copy_(tensor)
