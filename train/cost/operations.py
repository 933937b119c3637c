"""Operations of a forward or training pass, counted from a Hugging Face configuration and the sizes of samples.

A multiply-add counts as two. Attention counts query-key pairs: under the causal mask in the language model,
within windows and temporal grids in the vision tower. Norms, activations and rotations count nothing. An operation of
the vision tower counts as much as one of the language model, though devices do not do all of them equally fast.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from data.batching.sample_cost import DecoderFlops, SampleCost, TowerSavings
from data.batching.sizes import Sizes
from evs.families import spec_of
from evs.families.spec import TextShape, TowerShape


class Operations(NamedTuple):
    """By part of the model: of a batch, or arrays of one entry a sample."""

    vision: Any
    merger: Any
    language: Any
    head: Any

    @property
    def total(self) -> Any:
        return sum(self)


@dataclass(frozen=True)
class Work:
    """What a batch asks of the model; or many samples, each number then an array. Batches are sums of samples."""

    patches: Any  # that the vision tower reads
    pairs: Any  # of patches that share a temporal grid, or an image
    tokens: Any  # that the language model reads
    token_pairs: Any  # (query, key) pairs of the language model's causal attention, within samples
    targets: Any  # tokens that the head predicts


@dataclass(frozen=True)
class StepSchedule:
    """How a step goes through its views."""

    sees_once: bool = True  # one pass of the vision tower serves all views
    alone: bool = False  # the first view teaches the others, and has no backward pass
    base: bool = False  # the model without its LoRA reads the first view too
    base_sees: bool = False  # by a pass of the vision tower of its own


ONE_VIEW = StepSchedule()


def batch_work(grids: Sequence[tuple[int, int, int]], lengths: Sequence[int], targets: int) -> Work:
    """Of one batch: patches of every image and video (temporal grids, height, width), tokens of every sample."""
    return Work(
        patches=sum(t * h * w for t, h, w in grids),
        pairs=sum(t * (h * w) ** 2 for t, h, w in grids),
        tokens=sum(lengths),
        token_pairs=sum(map(causal, lengths)),
        targets=targets,
    )


def before_tower(config: Any, work: Work, dropped: Any, block: int) -> Work:
    """The work of a batch whose tower goes on without `dropped` tokens from `block` on: what its blocks see on average.

    The survivors are taken to be shared alike among temporal grids, which concerns attention's part only.
    """
    tower = spec_of(config).tower_shape(config)
    left = 1 - dropped * tower.merge_size**2 / np.maximum(work.patches, 1)
    whole = block / tower.blocks  # the share of blocks that see everything
    return replace(
        work,
        patches=work.patches * (whole + (1 - whole) * left),
        pairs=work.pairs * (whole + (1 - whole) * left**2),
    )


def causal(length: Any) -> Any:
    """Query-key pairs of causal attention within a sample of `length` tokens."""
    return length * (length + 1) / 2


def forward(config: Any, work: Work) -> Operations:
    """Operations of one forward pass."""
    spec, head = spec_of(config), config.get_text_config()
    text, tower = spec.text_shape(config), spec.tower_shape(config)
    return Operations(
        vision=2 * work.patches * tower.weights + _vision_attention(tower, work),
        merger=2 * work.patches / tower.merge_size**2 * tower.merger_weights,
        language=2 * work.tokens * (text.weights + _recurrence(text)) + _causal_attention(text, work),
        head=2 * work.targets * head.hidden_size * head.vocab_size,
    )


def training(
    config: Any,
    work: Work,
    *,
    frozen: Collection[str] = (),
    lora: bool = False,
    recomputed: Collection[str] = (),
) -> Operations:
    """Operations of forward and backward. `frozen` and `recomputed` name towers (train.config.TOWERS); LoRA's own are
    left out.

    Backward costs a forward for the gradients of the inputs and another for those of the weights; neither is made
    below the first trained weight, and the second not for frozen ones. A tower whose activations are recomputed costs
    one more forward where backward goes through it.
    """
    once = forward(config, work)
    vision, merger, language = (name not in frozen for name in ("vision", "merger", "language"))
    heavy = language and not lora
    through = vision or merger or language or lora
    return Operations(
        vision=once.vision * ((3 + ("vision" in recomputed)) if vision else 1),
        merger=once.merger * (1 + (vision or merger) + merger),  # its own norm comes first
        language=once.language * (1 + through * (1 + ("language" in recomputed)) + heavy),
        head=once.head * (2 + heavy),
    )


def training_in_views(config: Any, works: Sequence[Work], course: StepSchedule, **trained: Any) -> Operations:
    """Operations of forward and backward of a batch read several times, given the work of each view alone."""
    parts = [training(config, work, **trained) for work in works]
    once = forward(config, works[0])
    if course.alone:
        parts[0] = parts[0]._replace(language=once.language, head=once.head) if course.sees_once else once
    if course.sees_once:
        parts[1:] = [each._replace(vision=0, merger=0) for each in parts[1:]]
    if course.base:
        parts.append(once if course.base_sees else once._replace(vision=0, merger=0))
    return Operations(*map(sum, zip(*parts)))


def price(
    config: Any,
    sizes: Sizes,
    before: int | None = None,
    views: int = 1,
    course: StepSchedule = ONE_VIEW,
    **trained: Any,
) -> SampleCost:
    """What training on each sample costs, by the tokens that are left of it in each of the views; the tower drops the
    others before its block `before` (None: after it). `trained` as in `training`."""
    course = replace(course, sees_once=before is None)
    zero = np.zeros(len(sizes))
    seen = Work(sizes.patches_S, sizes.pairs_S, zero, zero, sizes.targets_S)
    media = training(config, seen, **trained).total
    all_media = training_in_views(config, [seen] * views, course, **trained).total
    readings = tuple(_reading(config, view, views, course, **trained) for view in range(views))
    if before is None:
        return SampleCost(all_media, readings)
    tokens_S = sizes.unpruned()
    most_S = tokens_S - sizes.fixed_S
    half_S, whole_S = (
        media - training(config, before_tower(config, seen, share * most_S, before), **trained).total
        for share in (0.5, 1)
    )
    least_S = np.maximum(most_S, 1)  # where there is no video, nothing is spared
    line_S, square_S = (4 * half_S - whole_S) / least_S, (4 * half_S - 2 * whole_S) / least_S**2
    return SampleCost(all_media, readings, TowerSavings(tokens_S, line_S, square_S))


def _reading(config: Any, view: int, views: int, course: StepSchedule, **trained: Any) -> DecoderFlops:
    """What the language model's tokens and token pairs cost in one of the views."""
    nothing = Work(0, 0, 0, 0, 0)
    per_token, per_pair = (
        training_in_views(config, [unit if each == view else nothing for each in range(views)], course, **trained).total
        for unit in (replace(nothing, tokens=1), replace(nothing, token_pairs=1))
    )
    return DecoderFlops(float(per_token), float(per_pair))


def budget(price: SampleCost, tokens: np.ndarray, token_budget: int) -> float:
    """Operations that suit a budget of tokens, [views, S] being those of every sample at the lowest rates: what so many
    cost on average there, less a tenth, so that tokens seldom bind; never less than the dearest sample alone."""
    cost_S = price(np.arange(tokens.shape[1]), tokens)
    return max(0.9 * token_budget * cost_S.sum() / tokens.sum(), cost_S.max())


def _recurrence(text: TextShape) -> int:
    """Multiply-adds of one token with the states of all layers: read with the key, written, read with the query."""
    return 3 * text.recurrent_layers * math.prod(text.state)


def _causal_attention(text: TextShape, work: Work) -> Any:
    return 4 * work.token_pairs * text.attention_width * text.attention_layers


def _vision_attention(tower: TowerShape, work: Work) -> Any:
    whole = tower.blocks if tower.full_attention_blocks is None else tower.full_attention_blocks
    within = np.minimum(tower.window_patches * work.patches, work.pairs)  # a picture may be smaller than a window
    return 4 * (work.pairs * whole + within * (tower.blocks - whole)) * tower.width
