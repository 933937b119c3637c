"""Run a language model over packed samples: as one row if the kernel keeps them apart, else as a padded batch.

FlashAttention and flex attention take the pack as it is. SDPA and eager attention would build an N x N block-diagonal
mask, so the pack becomes right-padded rows if that is cheaper: under causal attention no token sees the padding to
its right, and no mask is needed at all.

Layers with a recurrent state separate samples only if kernels for variable lengths are installed and given the borders.
Without them the pack always becomes padded rows: a recurrence is not affected by the padding after a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from evs.sequence_parallel import HeadExchange, SequenceGroup
from evs.types import DecoderInputs

# Parts of the names of attention implementations that separate packed samples by position row 0.
MASK_FREE = ("flash", "flex", "paged")


def index_in_segment(segment_N: Tensor) -> Tensor:
    """[N] 0, 1, 2, ... within each sample of a pack."""
    return torch.arange(len(segment_N), device=segment_N.device) - torch.searchsorted(segment_N, segment_N)


def decode_packed(
    language_model: Any, x: DecoderInputs, kernels: Sequence[str] = (), group: SequenceGroup | None = None
) -> Tensor:
    """[N, D] last hidden states of the text model `language_model` over the pack `x`.

    `kernels` are the packages that a family needs to run its recurrent layers over a pack; see FamilySpec. If the ranks
    of a `group` share the pack, the result is that of this rank's slice, and so are `embeds_ND` and `deepstack` of `x`.
    """
    if group is not None:
        return _as_slice(language_model, x, group)
    config, index_N = language_model.config, index_in_segment(x.segment_N)
    if keeps_segments_apart(config, kernels):
        return _as_one_row(language_model, x, index_N)
    samples, longest = int(x.segment_N[-1]) + 1, int(index_N.max()) + 1
    if _separable(config, kernels) and samples > 1 and _cost(config, 1, len(index_N)) < _cost(config, samples, longest):
        return _as_one_row(language_model, x, index_N)
    return _as_padded_rows(language_model, x, index_N, (samples, longest))


def keeps_segments_apart(config: Any, kernels: Sequence[str] = ()) -> bool:
    """True if a text model of this configuration can take a pack as one row without a mask."""
    return _separable(config, kernels) and any(name in config._attn_implementation for name in MASK_FREE)


def _separable(config: Any, kernels: Sequence[str]) -> bool:
    return not _recurrent(config) or installed(kernels)


def _recurrent(config: Any) -> bool:
    """True if some layers carry a state from token to token, which no attention mask cuts."""
    return "linear_attention" in (getattr(config, "layer_types", None) or ())


def installed(packages: Sequence[str]) -> bool:
    """True if all of the packages can be imported."""
    return all(map(find_spec, packages))


def _as_one_row(language_model: Any, x: DecoderInputs, index_N: Tensor) -> Tensor:
    # Position row 0 counts every sample's *surviving* tokens from 0: a step other than one is read as the start of
    # another packed sample, which the preserved positions, full of gaps, would be.
    positions = torch.cat([index_N[None], x.positions_PN])[:, None]
    borders = _borders(x.segment_N, index_N) if _recurrent(language_model.config) else {}
    return _run(language_model, x.embeds_ND[None], positions, x.visual_N[None], x.deepstack, **borders)[0]


def _borders(segment_N: Tensor, index_N: Tensor) -> dict[str, Tensor]:
    """Where samples begin, in the form that the kernels of the recurrence and of the convolution take."""
    starts = (index_N == 0).nonzero().squeeze(1)
    ends = torch.cat([starts, starts.new_tensor([len(index_N)])])
    return {"cu_seq_lens_q": ends.int(), "seq_idx": segment_N[None].int()}


def _as_padded_rows(language_model: Any, x: DecoderInputs, index_N: Tensor, shape: tuple[int, int]) -> Tensor:
    place = (x.segment_N, index_N)

    def pad(values_N: Tensor) -> Tensor:
        return values_N.new_zeros(*shape, *values_N.shape[1:]).index_put(place, values_N)

    dense = torch.arange(shape[1], device=index_N.device).expand(1, *shape)
    positions = torch.cat([dense, pad(x.positions_PN.T.contiguous()).movedim(-1, 0)])
    return _run(language_model, pad(x.embeds_ND), positions, pad(x.visual_N), x.deepstack)[place]


def _as_slice(language_model: Any, x: DecoderInputs, group: SequenceGroup) -> Tensor:
    tokens = len(x.segment_N)
    own, lengths = group.own_slice(tokens), x.segment_N.bincount().tolist()
    if padding := -tokens % group.size:
        lengths.append(padding)
    # Without position row 0, no mask is built: the exchange knows the borders of samples.
    exchange = HeadExchange(group, lengths)
    hidden = _run(
        language_model,
        own.padded(x.embeds_ND)[None],
        own.take(x.positions_PN.T).T[:, None],
        own.take(x.visual_N)[None],
        x.deepstack,
        head_exchange=exchange,
    )[0]
    if not exchange.calls:  # the attention ignored the argument, and every rank saw its own slice only
        attention = language_model.config._attn_implementation
        raise ValueError(f"attention {attention} does not exchange heads: call train.model.exchange_heads on the model")
    return hidden


def _run(
    language_model: Any,
    embeds: Tensor,
    positions: Tensor,
    visual: Tensor,
    deepstack: tuple[Tensor, ...],
    **more: Any,
) -> Tensor:
    extra = {"visual_pos_masks": visual, "deepstack_visual_embeds": list(deepstack)} if deepstack else {}
    if len(positions) == 2:  # a family without rotary positions only needs the beginnings of samples
        positions = positions[0]
    return language_model(
        inputs_embeds=embeds, position_ids=positions, attention_mask=None, use_cache=False, **extra, **more
    ).last_hidden_state


def _cost(config: Any, rows: int, length: int) -> float:
    """Multiply-adds of one decoder layer up to a factor: of projections and MLP, and of attention."""
    linear = 4 * config.hidden_size + 3 * getattr(config, "intermediate_size", config.hidden_size)
    return rows * length * (linear + 2 * length)
