"""What all sources of samples share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.types import Sample


@dataclass(frozen=True)
class Selection(Sequence[Sample]):
    """Some of a sequence's samples."""

    samples: Sequence[Sample]
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: Any) -> Any:
        chosen = self.places[place]
        return [self.samples[i] for i in chosen] if isinstance(place, slice) else self.samples[chosen]
