"""A cache of keep masks, so that a video that is encoded again keeps the same tokens, without being scored again.

vLLM may drop an encoded video from its cache while the KV cache of its tokens remains. A later request that hits a part
of the prompt then encodes the video again for the rest, in another batch, in which kernels may round differently and
tokens of nearly equal score may change places. The rest would not fit the cached part.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.nn.functional import pad

REMEMBERED = 2**14  # videos; one of 20,000 tokens takes 2.5 KB


class KeptMasks:
    """A least-recently-used cache of at most `limit` masks, by the content of their video.

    Masks stay on their device, one bit per token, so that neither side waits for the other.
    """

    def __init__(self, limit: int = REMEMBERED) -> None:
        self.limit = limit
        self._masks: OrderedDict[Hashable, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._masks)

    def clear(self) -> None:
        self._masks.clear()

    def recall(self, key: Hashable, tokens: int, choose: Callable[[], Tensor]) -> Tensor:
        """The cached [tokens] bool mask of the video with this key; `choose` computes it on a miss."""
        if (packed := self._masks.get(key)) is not None:
            self._masks.move_to_end(key)
            return unpack(packed, tokens)
        chosen = choose().flatten()
        self._masks[key] = pack(chosen)
        if len(self._masks) > self.limit:
            self._masks.popitem(last=False)
        return chosen


def pack(mask_M: Tensor) -> Tensor:
    """The mask as bits of bytes, on its device."""
    bits = pad(mask_M.to(torch.uint8), (0, -len(mask_M) % 8)).view(-1, 8)
    return (bits << torch.arange(8, device=bits.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, tokens: int) -> Tensor:
    """The inverse of `pack`, for a mask of so many tokens."""
    bits = packed[:, None] >> torch.arange(8, device=packed.device)
    return (bits & 1).bool().flatten()[:tokens]
