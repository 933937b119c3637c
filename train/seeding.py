"""What libraries draw from torch's global generators (initial weights, dropout), made a function of a key."""

from __future__ import annotations

import hashlib

import torch


def seed_draws(*key: object) -> None:
    """From here on torch draws, on every device, what follows from `key`, whatever was drawn before."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
