"""Several prunings (views) of one batch, decoded together as segments of one pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from evs.families import Adapter
from evs.packing import keeps_segments_apart
from evs.sequence_parallel import SequenceGroup
from evs.types import IGNORE, DecoderInputs


def decode_labelled(
    adapter: Adapter, views: Sequence[DecoderInputs], group: SequenceGroup | None = None
) -> list[Tensor]:
    """For each view, the [T, D] hidden states that predict its T labelled tokens, on every rank of the `group`.

    One call of `adapter.decode` if its attention keeps segments apart. Otherwise there is one call per view: in a
    common pack, short views would be padded to the longest sample. A group holds a slice of every view, not of a pack.
    """
    language = adapter.spec.towers.of(adapter.model).language
    if len(views) > 1 and not group and keeps_segments_apart(language.config, adapter.spec.kernels):
        states = _decode(adapter, joined(views), None)
        return list(states.split([len(states) // len(views)] * len(views)))
    return [_decode(adapter, x, group) for x in views]


def _decode(adapter: Adapter, x: DecoderInputs, group: SequenceGroup | None) -> Tensor:
    before_T = (x.labels_N != IGNORE).nonzero().squeeze(1) - 1
    if group is None:
        return adapter.decode(x)[before_T]
    return group.gathered(adapter.decode(x, group), before_T, len(x.labels_N))


def joined(views: Sequence[DecoderInputs]) -> DecoderInputs:
    """Views of the same samples packed end to end; each sample of each view is a segment."""
    samples = views[0].segment_N[-1] + 1  # a tensor, to avoid a device synchronization
    return replace(
        views[0],
        embeds_ND=torch.cat([x.embeds_ND for x in views]),
        positions_PN=torch.cat([x.positions_PN for x in views], dim=1),
        segment_N=torch.cat([x.segment_N + view * samples for view, x in enumerate(views)]),
        labels_N=torch.cat([x.labels_N for x in views]),
        video_N=torch.cat([x.video_N for x in views]),
        visual_N=torch.cat([x.visual_N for x in views]),
        deepstack=tuple(torch.cat(rows) for rows in zip(*(x.deepstack for x in views))),
    )
