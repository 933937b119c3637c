"""Generation after a pruned prefill, by the `generate` of transformers.

The cache holds the surviving tokens only, and the library counts pruned lengths, so its sampling, beams, assisted
decoding, streamers, logits processors and caches work as for any prompt. Generated tokens have the positions that they
would have without pruning: the first one that of the unpruned prompt's maximum plus one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from evs.families import Adapter, MediaBatch, towers_of
from evs.methods import Method
from evs.methods.evs import FrameDelta
from evs.packing import index_in_segment
from evs.pipeline import EncodedBatch
from evs.pruning import prune
from evs.selection import check_rate
from evs.types import DecoderInputs, Grid
from evs.views import joined


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
    *,
    method: Method | None = None,
    logprobs: int = 0,
    **settings: Any,
) -> list[Generation]:
    """One Generation per prompt of the batch, its videos pruned at `rate` by `method` (None: EVS).

    `settings` are those of `model.generate`. Decoding is greedy, without penalties, up to 128 tokens unless they say
    otherwise: of the checkpoint's generation_config only the special tokens are used. `logprobs` is the number of most
    likely tokens to report at every step, before any logits processor. Raises ValueError for a rate outside [0, 1) and
    for settings that give other than one sequence per prompt.
    """
    rates_V = [check_rate(rate)] * len(grids := adapter.grids(batch))
    out = EncodedBatch(adapter, batch, method or FrameDelta()).prune(rates_V, pruned=rate > 0)
    embedded, kept_S = out.embedded, out.x.segment_N.bincount().tolist()
    next_B, ids_N = next_positions(adapter.scheme, embedded, out.x), batch.input_ids_N.to(out.keep_N.device)
    answers, logits = _answers(model, out.x, next_B, ids_N[out.keep_N], settings | {"output_logits": logprobs > 0})
    frames = _kept_per_frame(embedded, out.keep_N, grids)
    return [
        Generation(
            tokens,
            tuple(_top(step_BV[i], logprobs, token) for step_BV, token in zip(logits, tokens)),
            size,
            kept_S[i],
            frames[i],
        )
        for i, (tokens, size) in enumerate(zip(answers, embedded.segment_N.bincount().tolist()))
    ]


@torch.no_grad()
def continue_at(
    model: Any, x: DecoderInputs, input_ids_N: Tensor, ends: Sequence[int], **settings: Any
) -> list[tuple[int, ...]]:
    """The tokens generated in place of those at `ends`, each after all tokens of its sample before it.

    `x` and its token ids are already pruned, so that several answers of one conversation encode its media once.
    `settings` as in `generate`; with `synced_gpus=True`, ranks that share the model's parameters call it equally often.
    """
    index_N = torch.arange(len(x.segment_N), device=x.segment_N.device)
    befores = [(x.segment_N == x.segment_N[end - 1]) & (index_N < end) for end in ends]
    lengths_B = torch.stack(befores).sum(1)
    row_N = torch.arange(len(ends), device=index_N.device).repeat_interleave(lengths_B)
    prompts = replace(joined([prune(x, keep_N) for keep_N in befores]), segment_N=row_N)
    # The token before an answer belongs to its header, which is text.
    next_B = prompts.positions_PN[:, lengths_B.cumsum(0) - 1].amax(0) + 1
    ids_N = torch.cat([input_ids_N[keep_N] for keep_N in befores])
    return _answers(model, prompts, next_B, ids_N, settings)[0]


@torch.no_grad()
def generate_pruned(model: Any, x: DecoderInputs, next_B: Tensor, input_ids_N: Tensor, **generate_kwargs: Any) -> Any:
    """What `model.generate` returns for prompts that are already pruned: one left-padded row per sample of `x`.

    `next_B` is the position of each first generated token; `input_ids_N` are the ids of the surviving tokens, which
    logits processors and candidate generators read, and with which the returned sequences begin. `generate_kwargs` are
    those of `model.generate`. Raises ValueError for those that decode the prompt in several passes or another prompt.
    """
    if generate_kwargs.get("cache_implementation") == "paged" or generate_kwargs.get("negative_prompt_ids") is not None:
        raise ValueError("cache_implementation='paged' and negative_prompt_ids are not supported: leave them out")
    prompt, towers = _Prompt(x), towers_of(model)
    inputs = {
        "input_ids": prompt.padded(input_ids_N, model.generation_config.pad_token_id or 0),
        "attention_mask": prompt.mask_BL,
    }
    if prompt.positions is not None:
        inputs["position_ids"] = prompt.positions.clone()
        inputs["position_ids"][1:, :, -1] = next_B - 1  # the library counts on from the last position
    last: Any = nullcontext()
    if "logits_to_keep" not in signature(model.forward).parameters:  # the head would read the whole prompt
        last = towers.head.register_forward_pre_hook(lambda _, args: (args[0][:, -1:],))
    with towers.language.register_forward_pre_hook(prompt.feed, with_kwargs=True), last:
        return model.generate(**inputs, **generate_kwargs)


class _Prompt:
    """Pruned prompts as left-padded rows, which a prefill reads in place of the embeddings of their ids.

    Padding is on the left and masked: attention ignores it, and a recurrence stays at zero until the prompt begins.
    Padding on the right would enter the state before the first generated token.
    """

    def __init__(self, x: DecoderInputs) -> None:
        lengths_B = x.segment_N.bincount()
        self.shape = len(lengths_B), int(lengths_B.max())
        self.place = (x.segment_N, (self.shape[1] - lengths_B)[x.segment_N] + index_in_segment(x.segment_N))
        self.mask_BL = self.padded(torch.ones_like(x.segment_N))
        self.embeds_BLD, self.visual_BL, self.deepstack = self.padded(x.embeds_ND), self.padded(x.visual_N), x.deepstack
        self.positions, self.fed = None, False
        if len(x.positions_PN) > 1:  # a family without rotary positions computes them
            dense_BL = (self.mask_BL.cumsum(1) - 1).clamp(min=0)
            self.positions = torch.cat([dense_BL[None], self.padded(x.positions_PN.T.contiguous()).movedim(-1, 0)])

    def padded(self, values_N: Tensor, filler: int = 0) -> Tensor:
        """[B, L, ...] rows of packed values."""
        return values_N.new_full((*self.shape, *values_N.shape[1:]), filler).index_put(self.place, values_N)

    def feed(self, _: Any, args: Any, options: dict[str, Any]) -> Any:
        """The language model's arguments with the prompts in place, if a forward pass begins with them.

        Rows are repeated as the library repeats them for beams. Candidates of assisted decoding may follow the prompts.
        """
        embeds, length = options["inputs_embeds"], self.shape[1]
        cache = options.get("cache", options.get("past_key_values"))
        if embeds.shape[1] < length or (cache is not None and cache.get_seq_length()):
            if self.fed and cache is not None:
                return None
            raise ValueError(
                f"the {length} tokens of a pruned prompt are decoded in one pass: leave out prefill_chunk_size, "
                "guidance_scale and a cache with tokens"
            )
        self.fed, times = True, len(embeds) // self.shape[0]
        embeds = embeds.clone()
        embeds[:, :length] = self.embeds_BLD.repeat_interleave(times, 0)
        options |= {"inputs_embeds": embeds}
        if self.positions is not None:
            positions = options["position_ids"].clone()
            positions[..., :length] = self.positions.repeat_interleave(times, 1)
            options |= {"position_ids": positions}
        if self.deepstack:
            visual_BL = self.visual_BL.repeat_interleave(times, 0)
            row_BL = (self.visual_BL.flatten().cumsum(0) - 1).view(self.shape).repeat_interleave(times, 0)
            options |= {
                "visual_pos_masks": pad(visual_BL, (0, embeds.shape[1] - length)),
                "deepstack_visual_embeds": [level[row_BL[visual_BL]] for level in self.deepstack],
            }
        return args, options


def next_positions(scheme: str, full: DecoderInputs, pruned: DecoderInputs) -> Tensor:
    """[B] position of each answer: after the unpruned prompt, or after the survivors as on a stock server."""
    x = full if scheme == "preserve" else pruned
    highest_N = x.positions_PN.amax(0)
    return highest_N.new_zeros(int(x.segment_N[-1]) + 1).scatter_reduce(0, x.segment_N, highest_N, "amax") + 1


def _answers(
    model: Any, x: DecoderInputs, next_B: Tensor, input_ids_N: Tensor, settings: dict[str, Any]
) -> tuple[list[tuple[int, ...]], tuple[Tensor, ...]]:
    """(The generated tokens of every prompt, the logits of every step if `settings` ask for them)."""
    with _special_tokens_only(model) as defaults:
        out = generate_pruned(model, x, next_B, input_ids_N, **settings | {"return_dict_in_generate": True})
    prompts, logits = len(next_B), out.get("logits") or ()
    if any(len(rows) != prompts for rows in (out.sequences, *logits[:1])):
        raise ValueError(
            "num_return_sequences, and logprobs of beams, are not supported: use evs.generate.generate_pruned"
        )
    given = getattr(settings.get("generation_config"), "eos_token_id", None)
    eos = settings.get("eos_token_id", defaults.eos_token_id if given is None else given)
    ends = {eos} if isinstance(eos, int) else {*(eos or ())}
    rows = out.sequences[:, int(x.segment_N.bincount().max()) :].tolist()
    lengths = (next((i for i, token in enumerate(row, 1) if token in ends), None) for row in rows)
    return [tuple(row[:length]) for row, length in zip(rows, lengths)], logits  # the library pads after the end


@contextmanager
def _special_tokens_only(model: Any) -> Iterator[Any]:
    """Ignore the checkpoint's own way of sampling and its penalties, which evaluation and servers do not apply."""
    stored = model.generation_config
    special = {name: getattr(stored, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = type(stored)(max_new_tokens=128, **special)
    try:
        yield model.generation_config
    finally:
        model.generation_config = stored


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
