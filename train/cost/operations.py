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
from data.sizes import Sizes
from evs.families import spec_of
from evs.families.spec import TextShape, TowerShape


class Operations(NamedTuple):
    """Operations by part of the model: numbers for a batch, or arrays with one entry per sample."""

    vision: Any
    merger: Any
    language: Any
    head: Any

    @property
    def total(self) -> Any:
        return sum(self)


@dataclass(frozen=True)
class Work:
    """Sizes that determine the operations of a batch, or arrays of them for many samples. They add up over samples."""

    patches: Any  # that the vision tower processes
    pairs: Any  # pairs of patches in the same temporal grid or image
    tokens: Any  # that the language model processes
    token_pairs: Any  # (query, key) pairs of the language model's causal attention, within samples
    targets: Any  # tokens that the head predicts


@dataclass(frozen=True)
class StepSchedule:
    """How a step processes its views."""

    encodes_once: bool = True  # one pass of the vision tower serves all views
    no_grad_teacher: bool = False  # the first view teaches the others and has no backward pass
    base: bool = False  # the base model without LoRA processes the first view too
    base_encodes: bool = False  # with its own pass of the vision tower


ONE_VIEW = StepSchedule()


def batch_work(grids: Sequence[tuple[int, int, int]], lengths: Sequence[int], targets: int) -> Work:
    """The work of a batch, from (t, h, w) patches of every image and video and the number of tokens of every sample."""
    return Work(
        patches=sum(t * h * w for t, h, w in grids),
        pairs=sum(t * (h * w) ** 2 for t, h, w in grids),
        tokens=sum(lengths),
        token_pairs=sum(map(causal, lengths)),
        targets=targets,
    )


def before_tower(config: Any, work: Work, dropped: Any, block: int) -> Work:
    """The work of a batch if the tower drops `dropped` tokens before block `block`, averaged over its blocks.

    All temporal grids are assumed to keep the same fraction, which affects the count of attention only.
    """
    tower = spec_of(config).tower_shape(config)
    left = 1 - dropped * tower.merge_size**2 / np.maximum(work.patches, 1)
    unpruned = block / tower.blocks  # fraction of the blocks that process all patches
    return replace(
        work,
        patches=work.patches * (unpruned + (1 - unpruned) * left),
        pairs=work.pairs * (unpruned + (1 - unpruned) * left**2),
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
    """Operations of forward and backward. `frozen` and `recomputed` name towers (train.config.TOWERS).

    Backward costs as much as a forward for the gradients of the inputs and again for those of the weights. Neither is
    computed below the first trained weight, and frozen weights need no gradients. A recomputed tower costs one more
    forward if backward passes through it. The operations of LoRA's own matrices are not counted.
    """
    once = forward(config, work)
    vision, merger, language = (name not in frozen for name in ("vision", "merger", "language"))
    weight_grads = language and not lora
    input_grads = vision or merger or language or lora
    return Operations(
        vision=once.vision * ((3 + ("vision" in recomputed)) if vision else 1),
        merger=once.merger * (1 + (vision or merger) + merger),
        language=once.language * (1 + input_grads * (1 + ("language" in recomputed)) + weight_grads),
        head=once.head * (2 + weight_grads),
    )


def training_in_views(config: Any, works: Sequence[Work], schedule: StepSchedule, **trained: Any) -> Operations:
    """Operations of forward and backward of a batch with several views, from the work of each view alone."""
    parts = [training(config, work, **trained) for work in works]
    once = forward(config, works[0])
    if schedule.no_grad_teacher:
        parts[0] = parts[0]._replace(language=once.language, head=once.head) if schedule.encodes_once else once
    if schedule.encodes_once:
        parts[1:] = [part._replace(vision=0, merger=0) for part in parts[1:]]
    if schedule.base:
        parts.append(once if schedule.base_encodes else once._replace(vision=0, merger=0))
    return Operations(*map(sum, zip(*parts)))


def sample_cost(
    config: Any,
    sizes: Sizes,
    before: int | None = None,
    views: int = 1,
    schedule: StepSchedule = ONE_VIEW,
    **trained: Any,
) -> SampleCost:
    """The cost of training on each sample, as a function of its tokens after pruning in each view.

    `before` is the block of the vision tower before which tokens are dropped; None drops them after the tower.
    `trained` holds the keyword arguments of `training`.
    """
    schedule = replace(schedule, encodes_once=before is None)
    zero = np.zeros(len(sizes))
    media_work = Work(sizes.patches_S, sizes.pairs_S, zero, zero, sizes.targets_S)
    media = training(config, media_work, **trained).total
    all_media = training_in_views(config, [media_work] * views, schedule, **trained).total
    decoder = tuple(_decoder_flops(config, view, views, schedule, **trained) for view in range(views))
    if before is None:
        return SampleCost(all_media, decoder)
    tokens_S = sizes.unpruned()
    video_S = tokens_S - sizes.fixed_S
    half_S, all_S = (
        media - training(config, before_tower(config, media_work, share * video_S, before), **trained).total
        for share in (0.5, 1)
    )
    divisor_S = np.maximum(video_S, 1)  # savings are 0 without video tokens
    linear_S, quadratic_S = (4 * half_S - all_S) / divisor_S, (4 * half_S - 2 * all_S) / divisor_S**2
    return SampleCost(all_media, decoder, TowerSavings(tokens_S, linear_S, quadratic_S))


def _decoder_flops(config: Any, view: int, views: int, schedule: StepSchedule, **trained: Any) -> DecoderFlops:
    """Operations per token and per token pair of the language model in one of the views."""
    no_work = Work(0, 0, 0, 0, 0)
    per_token, per_pair = (
        training_in_views(config, [unit if i == view else no_work for i in range(views)], schedule, **trained).total
        for unit in (replace(no_work, tokens=1), replace(no_work, token_pairs=1))
    )
    return DecoderFlops(float(per_token), float(per_pair))


def budget(cost_of: SampleCost, tokens: np.ndarray, token_budget: int) -> float:
    """The budget in operations for `train.cost_budget=auto`: 90 % of the mean cost of `token_budget` tokens.

    `tokens` holds the tokens of every sample at the lowest rates, [views, S]. With 90 %, the token budget is rarely the
    limit. The result is at least the cost of the most expensive sample.
    """
    cost_S = cost_of(np.arange(tokens.shape[1]), tokens)
    return max(0.9 * token_budget * cost_S.sum() / tokens.sum(), cost_S.max())


def _recurrence(text: TextShape) -> int:
    """Multiply-adds of one token with the states of all layers: read with the key, write, and read with the query."""
    return 3 * text.recurrent_layers * math.prod(text.state)


def _causal_attention(text: TextShape, work: Work) -> Any:
    return 4 * work.token_pairs * text.attention_width * text.attention_layers


def _vision_attention(tower: TowerShape, work: Work) -> Any:
    full = tower.blocks if tower.full_attention_blocks is None else tower.full_attention_blocks
    windowed = np.minimum(tower.window_patches * work.patches, work.pairs)  # an image may be smaller than a window
    return 4 * (work.pairs * full + windowed * (tower.blocks - full)) * tower.width
