"""Our side of check_serving: answers of evs.generate at every rate, and the positions of the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from data.types import Batch
from evs.families import adapter_for
from evs.generate import Generation, generate, next_positions
from evs.methods import Method
from evs.pipeline import EncodedBatch
from scripts.serving.ties import ServersChoice
from train.model import load_pretrained

TOP, STEPS = 5, 8


@dataclass(frozen=True)
class Answer:
    generation: Generation
    positions: list[list[int]]  # [3][tokens] of kept tokens and of all generated tokens but the last
    choice: ServersChoice


class Ours:
    """A checkpoint that is loaded once and answers every combination of prompt, rate and kept tokens once."""

    def __init__(self, model: str, method: Method, scheme: str, dtype: str, device: str) -> None:
        loaded: Any = load_pretrained(AutoModelForImageTextToText, model, dtype=getattr(torch, dtype))
        self.model = loaded.to(device).eval()
        self.adapter = adapter_for(self.model, scheme)
        self.method = method
        self._answers: dict[tuple[str, float, str], Answer] = {}

    def answer(self, name: str, batch: Batch, rate: float, kept: Sequence[Sequence[int]]) -> Answer:
        """The answer to the prompt `name`. Between tokens of equal score it keeps those that the server kept."""
        key = name, rate, repr(kept)
        if key not in self._answers:
            choice = ServersChoice(kept, self.method)
            # More log-probabilities than the server's, so that they include all tokens of the server.
            settings: dict[str, Any] = {"logprobs": 4 * TOP, "max_new_tokens": STEPS, "eos_token_id": None}
            (generation,) = generate(self.model, self.adapter, batch, rate, method=choice, **settings)
            self._answers[key] = Answer(generation, self._positions(batch, rate, kept), choice)
        return self._answers[key]

    @torch.no_grad()
    def _positions(self, batch: Batch, rate: float, kept: Sequence[Sequence[int]]) -> list[list[int]]:
        rates_V = [rate] * len(self.adapter.grids(batch))
        out = EncodedBatch(self.adapter, batch, ServersChoice(kept, self.method)).prune(rates_V, pruned=rate > 0)
        following = int(next_positions(self.adapter.scheme, out.embedded, out.x)) + torch.arange(STEPS - 1)
        return torch.cat([out.x.positions_PN.cpu(), following.expand(len(out.x.positions_PN), -1)], dim=1).tolist()
