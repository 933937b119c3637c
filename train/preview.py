"""Preview of a run: a row as the model reads it, and the number of trained parameters.

It shows a wrong chat template, a missing answer or a frozen tower before the first step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, takewhile

from torch import nn

from data.encoding.encoder import Encoder
from data.sample_limits import guarded
from data.types import IGNORE, Clip, Encoding, MediaError, RowError, Sample
from evs import Grid
from evs.families import spec_of
from evs.methods import Method
from train.config import TOWERS
from train.model import base_model

OPEN, CLOSE = ">>", "<<"  # around labelled text


def parameters(model: nn.Module) -> str:
    """One line with the number of parameters of each tower and the number of trained ones."""
    total, trained = dict.fromkeys(TOWERS, 0), dict.fromkeys(TOWERS, 0)
    spec = spec_of(base_model(model).config)
    for name, parameter in model.named_parameters():
        total[spec.group_of(name)] += parameter.numel()
        trained[spec.group_of(name)] += parameter.numel() * parameter.requires_grad
    towers = ", ".join(f"{tower} {trained[tower]:,} of {total[tower]:,}" for tower in TOWERS)
    return f"trained parameters: {sum(trained.values()):,} of {sum(total.values()):,} ({towers})"


def first_row(encoder: Encoder, samples: Iterable[Sample], rates: Sequence[float], method: Method) -> str:
    """The first of the samples that can be encoded: its text with media folded and answers marked, and its tokens."""
    for sample in samples:
        try:
            with guarded(sample.id, encoder.limits.seconds):
                clips, images = encoder.read(sample)
                encoding = encoder.encode_clips(sample, clips, images)
        except (MediaError, RowError):
            continue
        head = f"row {encoding.id}, as the model reads it, {OPEN}labelled{CLOSE}:"
        return "\n".join([head, "".join(_pieces(encoder, encoding, clips)), _tokens(encoder, encoding, rates, method)])
    return "no row to show: none of the samples of the first step can be encoded"


def _tokens(encoder: Encoder, encoding: Encoding, rates: Sequence[float], method: Method) -> str:
    """The number of tokens of the row before and after pruning at each rate."""
    before, labelled = len(encoding.labels_N), int((encoding.labels_N != IGNORE).sum())
    grids = [_grid(encoder, thw) for thw in encoding.video_grid_thw_V3.tolist()]
    left = [before - sum(grid.tokens - method.count(grid, rate) for grid in grids) for rate in rates]
    after = ", ".join(f"{count} at rate {rate:.2f}" for rate, count in zip(rates, left))
    return f"{before} tokens, {labelled} of them labelled; after pruning {after}"


def _pieces(encoder: Encoder, encoding: Encoding, clips: Sequence[Clip]) -> Iterator[str]:
    """The prompt in order: decoded text, and a description of each medium instead of its tokens."""
    tokenizer, ids = encoder.processor.tokenizer, encoding.input_ids_N.tolist()
    labelled = (encoding.labels_N != IGNORE).tolist()
    marks = encoder.processor.video_token, encoder.processor.image_token
    placeholders = set(tokenizer.convert_tokens_to_ids([mark for mark in marks if mark in tokenizer.get_vocab()]))
    videos, images = _videos(encoder, encoding, clips), _images(encoder, encoding)
    media = (next(videos if video else images) for video in encoding.video_M.tolist())
    position = 0
    while position < len(ids):
        if ids[position] in placeholders:
            words, tokens = next(media)
            end = _end(ids, position, tokens)
            inside = end - position - tokens
            yield f"<{words}, {inside} tokens of timestamps and markers among them>" if inside else f"<{words}>"
        else:
            end = position + len(list(takewhile(lambda token: token not in placeholders, ids[position:])))
            for loss, run in groupby(range(position, end), labelled.__getitem__):
                text = tokenizer.decode([ids[i] for i in run])
                yield f"{OPEN}{text}{CLOSE}" if loss else text
        position = end


def _end(ids: Sequence[int], position: int, tokens: int) -> int:
    """Index at which a medium of so many tokens ends; timestamps may separate its temporal grids."""
    left = tokens
    end = position
    while left:
        left -= ids[end] == ids[position]
        end += 1
    return end


def _videos(encoder: Encoder, encoding: Encoding, clips: Sequence[Clip]) -> Iterator[tuple[str, int]]:
    """The description and the number of tokens of each video."""
    for thw, clip in zip(encoding.video_grid_thw_V3.tolist(), clips):
        grid = _grid(encoder, thw)
        times_T = clip.times_T if encoder.policy.times == "real" else clip.frame_indices_T / clip.fps
        seconds = f"{times_T[0]:.1f}-{times_T[-1]:.1f} s"
        yield f"video {grid.T} grids {grid.H}x{grid.W}, {len(times_T)} frames, {seconds}", grid.tokens


def _images(encoder: Encoder, encoding: Encoding) -> Iterator[tuple[str, int]]:
    for thw in encoding.image_grid_thw_I3.tolist():
        grid = _grid(encoder, thw)
        yield f"image {grid.H}x{grid.W}", grid.tokens


def _grid(encoder: Encoder, thw: Sequence[int]) -> Grid:
    t, h, w = thw
    return Grid(t, h // encoder.merge, w // encoder.merge)
