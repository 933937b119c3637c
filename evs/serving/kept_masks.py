"""A cache of keep masks, so that a video that is encoded again keeps the same tokens.

vLLM may drop an encoded video from its cache while the KV cache of its tokens remains. A later request that hits a part
of the prompt then encodes the video again for the rest, in another batch, in which kernels may round differently and
tokens of nearly equal score may change places. The rest would not fit the cached part.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

REMEMBERED = 2**14  # videos; one of 20,000 tokens takes 2.5 KB
WORDS, ROWS = 2**16, 128  # int64 words per row, rows that are summed at a time: 64 MB


class KeptMasks:
    """A least-recently-used cache of at most `limit` masks, by the content of their video."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self.limit = limit
        self._masks: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._masks)

    def clear(self) -> None:
        self._masks.clear()

    def recall(self, video: Tensor, shape: tuple[int, ...], choose: Callable[[], Tensor]) -> Tensor:
        """The cached bool mask for this content and `shape`; `choose` computes it on a miss."""
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
    """A 16-byte digest of a tensor's bytes. Integers are summed on the tensor's device, so that it is exact."""
    data = content.contiguous().view(torch.uint8).flatten()
    data = torch.nn.functional.pad(data, (0, -len(data) % (8 * WORDS)))
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**63), 2**63 - 1, (WORDS,), generator=generator).to(data.device) | 1
    rows = data.view(torch.int64).reshape(-1, WORDS)
    sums = torch.cat([(part * factors).sum(1) for part in rows.split(ROWS)])
    return hashlib.blake2b(sums.cpu().numpy().tobytes(), digest_size=16).digest()
