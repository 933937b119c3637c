"""Which tokens of each video survived, so that a video that is encoded again keeps the same ones.

vLLM drops encoded videos from its cache while the KV cache of their tokens lives on. A later request that finds a part
of a prompt there encodes the video again for the rest, in another batch, where kernels may round otherwise and tokens
of nearly equal score change places: the rest would not fit the part that is there.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

REMEMBERED = 2**14  # videos; one of 20,000 tokens takes 2.5 KB
WORDS, ROWS = 2**16, 128  # int64 words that are summed at once: 64 MB


class KeptMasks:
    """Masks by the content of their video, at most `limit` of them; the one used longest ago is forgotten first."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self.limit = limit
        self._masks: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._masks)

    def clear(self) -> None:
        self._masks.clear()

    def recall(self, video: Tensor, shape: tuple[int, ...], choose: Callable[[], Tensor]) -> Tensor:
        """The bool mask of `shape` that `choose` gave for this content and shape, asked only if it is not known."""
        key = fingerprint(video) + repr(shape).encode()
        if (packed := self._masks.get(key)) is not None:
            self._masks.move_to_end(key)
            mask = np.unpackbits(packed, count=int(np.prod(shape))).astype(bool)
            return torch.from_numpy(mask).reshape(shape).to(video.device)
        chosen = choose().reshape(shape)
        self._masks[key] = np.packbits(chosen.cpu().numpy())
        if len(self._masks) > self.limit:
            self._masks.popitem(last=False)
        return chosen


def fingerprint(content: Tensor) -> bytes:
    """16 bytes that follow from a tensor's bytes alone, summed on its own device in integers, which never round."""
    data = content.contiguous().view(torch.uint8).flatten()
    data = torch.nn.functional.pad(data, (0, -len(data) % (8 * WORDS)))
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**63), 2**63 - 1, (WORDS,), generator=generator).to(data.device) | 1
    rows = data.view(torch.int64).reshape(-1, WORDS)
    sums = torch.cat([(part * factors).sum(1) for part in rows.split(ROWS)])
    return hashlib.blake2b(sums.cpu().numpy().tobytes(), digest_size=16).digest()
