"""What check_serving asks both sides: a batch for ourselves, a request and its arrays for the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.types import Batch, Clip


@dataclass(frozen=True)
class Prompt:
    name: str
    batch: Batch
    request: dict[str, Any]  # as scripts/serving/worker.py reads it
    media: dict[str, np.ndarray] = field(default_factory=dict)  # that the request refers to
    clip: Clip | None = None  # where the server reads the file itself: what training saw of it
