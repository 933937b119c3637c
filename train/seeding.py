"""Seeds torch's global generators, from which libraries draw initial weights and dropout."""

from __future__ import annotations

import torch

from evs.rates import generator_of


def seed_draws(*key: object) -> None:
    """Seed the generators of all devices by `key`, independent of earlier draws."""
    torch.manual_seed(generator_of(*key).initial_seed())
