"""Generation after a pruned prefill: the prompt's media are pruned once, then tokens are generated one by one.

Every generated token has the position it would have without pruning: the first one that of the unpruned prompt's
maximum plus one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from evs.families import Adapter, MediaBatch, towers_of
from evs.methods import Method
from evs.methods.evs import FrameDelta
from evs.packing import index_in_segment
from evs.pipeline import EncodedBatch
from evs.selection import check_rate
from evs.types import DecoderInputs, Grid


@dataclass(frozen=True)
class Decoding:
    """How to choose tokens and when to stop.

    `processors` are the library's logits processors, (token ids [1, n], scores [1, vocabulary]) -> scores; they see the
    unpruned prompt. Each prompt draws from its own generator, so that its sample does not depend on its batch.
    """

    max_new_tokens: int = 128
    eos_ids: tuple[int, ...] | None = None  # None = the model's generation_config
    sample: bool = False
    seed: int = 0
    processors: Callable[[Tensor, Tensor], Tensor] | None = None
    logprobs: int = 0  # how many of the most likely tokens to report at every step


@dataclass(frozen=True)
class Generation:
    """The generated tokens of one prompt. `logprobs[i]` maps token ids to natural logarithms, most likely first."""

    tokens: tuple[int, ...]  # the end-of-sequence token included
    logprobs: tuple[dict[int, float], ...]
    prompt_tokens: int  # before pruning
    kept_tokens: int  # of them, after pruning
    frames: tuple[tuple[int, ...], ...]  # per video, the tokens kept of each temporal grid


@torch.no_grad()
def generate(
    model: Any,
    adapter: Adapter,
    batch: MediaBatch,
    rate: float,
    decoding: Decoding | None = None,
    *,
    method: Method | None = None,
    on_step: Callable[[list[int]], object] | None = None,
) -> list[Generation]:
    """One Generation per prompt of the batch, its videos pruned at `rate` by `method` (None: EVS); greedy unless
    `decoding` says otherwise.

    `on_step` receives every step's new tokens, one a prompt. Raises ValueError for a rate outside [0, 1).
    """
    decoding = _ending(decoding or Decoding(), model)
    grids = adapter.grids(batch)
    rates_V = [check_rate(rate)] * len(grids)
    out = EncodedBatch(adapter, batch, method or FrameDelta()).prune(rates_V, pruned=rate > 0)
    embedded, keep_N = out.embedded, out.keep_N
    sizes = embedded.segment_N.bincount().tolist()
    prompts = [
        _Prompt(ids, torch.Generator(embedded.embeds_ND.device).manual_seed(decoding.seed))
        for ids in batch.input_ids_N.to(embedded.embeds_ND.device).split(sizes)
    ]
    _generate(
        _Decoder(model, out.x, next_positions(adapter.scheme, embedded, out.x)), prompts, decoding, on_step=on_step
    )
    kept = embedded.segment_N[keep_N].bincount().tolist()
    frames = _kept_per_frame(embedded, keep_N, grids)
    return [
        Generation(tuple(prompt.tokens), tuple(prompt.logprobs), size, n, frames[i])
        for i, (prompt, size, n) in enumerate(zip(prompts, sizes, kept))
    ]


@torch.no_grad()
def continue_at(
    model: Any, x: DecoderInputs, ends: list[int], decoding: Decoding, *, going: Callable[[bool], bool] = bool
) -> list[tuple[int, ...]]:
    """The tokens generated in place of those at `ends`, each after all tokens of its sample before it.

    `x` is already pruned, so that several answers of one conversation encode its media once. Before every further step,
    `going` decides whether to continue, given whether any answer is unfinished: ranks that share the model's
    parameters agree there.
    """
    device = x.embeds_ND.device
    last_B = torch.tensor(ends, device=device) - 1
    next_B = x.positions_PN[:, last_B].amax(0) + 1  # the token before an answer belongs to its header, which is text
    prompts = [_Prompt(x.segment_N[:0], torch.Generator(device).manual_seed(decoding.seed)) for _ in ends]
    _generate(_Decoder(model, _before(x, last_B), next_B), prompts, _ending(decoding, model), going=going)
    return [tuple(prompt.tokens) for prompt in prompts]


def _before(x: DecoderInputs, last_B: Tensor) -> DecoderInputs:
    """One sample for each of the tokens `last_B`: the token and those of its sample before it."""
    lengths_B = index_in_segment(x.segment_N)[last_B] + 1
    places = torch.cat([torch.arange(last + 1 - n, last + 1) for last, n in zip(last_B.tolist(), lengths_B.tolist())])
    places = places.to(x.segment_N.device)
    row_N = x.visual_N.cumsum(0) - 1
    rows = row_N[places[x.visual_N[places]]]
    return replace(
        x,
        embeds_ND=x.embeds_ND[places],
        positions_PN=x.positions_PN[:, places],
        segment_N=torch.arange(len(last_B), device=places.device).repeat_interleave(lengths_B),
        labels_N=x.labels_N[places],
        video_N=x.video_N[places],
        visual_N=x.visual_N[places],
        deepstack=tuple(level[rows] for level in x.deepstack),
    )


def _generate(
    decoder: _Decoder,
    prompts: list[_Prompt],
    decoding: Decoding,
    *,
    on_step: Callable[[list[int]], object] | None = None,
    going: Callable[[bool], bool] = bool,
) -> None:
    """Extend every prompt until it ends or has the greatest number of new tokens."""
    for step in range(1, decoding.max_new_tokens + 1):
        tokens = [prompt.extend(logits, decoding) for prompt, logits in zip(prompts, decoder.logits_BV())]
        if on_step:
            on_step(tokens)
        if not going(step < decoding.max_new_tokens and not all(prompt.done for prompt in prompts)):
            break
        decoder.feed(tokens)


@dataclass
class _Prompt:
    """One prompt while it grows."""

    ids: Tensor
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)
    done: bool = False

    def extend(self, logits_V: Tensor, decoding: Decoding) -> int:
        """The next token. It is not recorded if the prompt has ended."""
        scores_1V = logits_V[None]
        if decoding.processors is not None:
            scores_1V = decoding.processors(self.ids[None], scores_1V)
        if decoding.sample:
            token = int(torch.multinomial(scores_1V.softmax(-1), 1, generator=self.generator))
        else:
            token = int(scores_1V.argmax())
        if not self.done:
            self.ids = torch.cat([self.ids, self.ids.new_tensor([token])])
            self.tokens.append(token)
            if decoding.logprobs:
                self.logprobs.append(_top(logits_V, decoding.logprobs, token))
            self.done = token in (decoding.eos_ids or ())
        return token


class _Decoder:
    """The language model with the prompts in its cache, one row each.

    Rows are padded on the left and masked: attention ignores the padding, and a recurrence stays at zero until the
    prompt begins. Padding on the right would enter the state before the first generated token.
    """

    def __init__(self, model: Any, x: DecoderInputs, next_B: Tensor) -> None:
        self.model, self.next_B, self.rows = model, next_B, len(x.positions_PN)
        lengths_B = x.segment_N.bincount()
        longest = lengths_B.max()
        place = (x.segment_N, (longest - lengths_B)[x.segment_N] + index_in_segment(x.segment_N))

        def pad(values_N: Tensor) -> Tensor:
            shape = len(lengths_B), int(longest), *values_N.shape[1:]
            return values_N.new_zeros(shape).index_put(place, values_N)

        self.mask_BL = pad(torch.ones_like(x.segment_N))
        levels = list(x.deepstack)
        extra = {"visual_pos_masks": pad(x.visual_N), "deepstack_visual_embeds": levels} if levels else {}
        self._run(pad(x.embeds_ND), pad(x.positions_PN.T.contiguous()).movedim(-1, 0), None, **extra)

    def logits_BV(self) -> Tensor:
        return towers_of(self.model).head(self.hidden_BD).float()

    def feed(self, tokens: list[int]) -> None:
        """Append one token to each row, at the row's next position."""
        self.mask_BL = torch.cat([self.mask_BL, torch.ones_like(self.mask_BL[:, :1])], dim=1)
        embeds = self.model.get_input_embeddings()(torch.tensor(tokens, device=self.next_B.device))
        self._run(embeds[:, None], self.next_B[:, None].expand(self.rows, -1, -1), self.cache)
        self.next_B = self.next_B + 1

    def _run(self, embeds: Tensor, positions: Tensor, cache: Any, **extra: Any) -> None:
        out = towers_of(self.model).language(
            inputs_embeds=embeds,
            position_ids=positions if self.rows > 1 else None,  # a family without rotary positions computes them
            attention_mask=self.mask_BL,
            past_key_values=cache,
            use_cache=True,
            **extra,
        )
        self.hidden_BD, self.cache = out.last_hidden_state[:, -1], out.past_key_values


def next_positions(scheme: str, full: DecoderInputs, pruned: DecoderInputs) -> Tensor:
    """[B] position of each answer: after the unpruned prompt, or after the survivors as on a stock server."""
    x = full if scheme == "preserve" else pruned
    highest_N = x.positions_PN.amax(0)
    return highest_N.new_zeros(int(x.segment_N[-1]) + 1).scatter_reduce(0, x.segment_N, highest_N, "amax") + 1


def _ending(decoding: Decoding, model: Any) -> Decoding:
    """`decoding` with the ids that end an answer filled in from the model."""
    if decoding.eos_ids is not None:
        return decoding
    eos = model.generation_config.eos_token_id
    return replace(decoding, eos_ids=() if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (eos,))


def _top(logits_V: Tensor, n: int, chosen: int) -> dict[int, float]:
    """The n most likely tokens, and the chosen one, before any processor."""
    logprobs = logits_V.log_softmax(-1)
    values, ids = logprobs.topk(n)
    return dict(zip(ids.tolist(), values.tolist())) | {chosen: float(logprobs[chosen])}


def _kept_per_frame(x: DecoderInputs, keep_N: Tensor, grids: list[Grid]) -> list[tuple[tuple[int, ...], ...]]:
    """Per prompt, per video, the tokens kept of each temporal grid."""
    frames: list[list[tuple[int, ...]]] = [[] for _ in range(int(x.segment_N[-1]) + 1)]
    for video, grid in enumerate(grids):
        tokens = x.video_N == video
        kept = keep_N[tokens].view(grid.T, -1).sum(1)
        frames[int(x.segment_N[tokens][0])].append(tuple(kept.tolist()))
    return [tuple(videos) for videos in frames]
