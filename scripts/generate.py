"""Ask a model about videos and images, with its video tokens pruned as in a server.

    python scripts/generate.py model=DIR_OR_HUB_ID video=FILE prompt="What happens?" rate=0.5
        [video=[a.mp4,b.mp4]] [image=[c.png]] [fps=2] [max_frames=768] [method=evs] [dtype=float32]
        [sample=true temperature=0.7 top_p=0.8 seed=1] [logprobs=5] [json=true]

Frames, pixels and positions default to those of the checkpoint's training (evs.json next to its weights).
Images and then videos precede the prompt, unless it places them: prompt="First <video>, then <video>: what changed?"
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from time import perf_counter
from typing import Any, cast

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import transformers as hf

from data.collate import collate
from data.encoding.encoder import Encoder
from data.formats.conversation import MARK, Media
from data.formats.roots import Folder
from data.media.frames import TIMES, FramePolicy
from data.types import Batch, Sample, Turn
from evs.families import adapter_for
from evs.generate import Generation, generate
from evs.methods import METHODS, method_named
from evs.pipeline import check_place
from evs.selection import check_rate
from train import cli
from train.config import ATTENTION, CELL, SCHEMES
from train.export.serving_metadata import checkpoint_policy, filled
from train.model import encoder_of, load_pretrained
from train.ranges import device, names, number

SAMPLING = ("temperature", "top_k", "top_p", "seed")


@dataclass(frozen=True)
class Options:
    model: str  # a checkpoint's folder or Hub id
    prompt: str  # the question; <video> and <image> mark the places of media
    rate: float = number(0.0, least=0, below=1)  # pruning rate: the fraction of video tokens to remove
    video: Any = None  # a file or a list of files
    image: Any = None  # a file or a list of files
    method: str | None = names(None, *METHODS)  # pruning method; default: that of evs.json, also for prune_at to times
    prune_at: Any = None  # merger, input or a block of the vision tower
    scheme: str | None = names(None, *SCHEMES)
    scorer_dtype: str | None = None
    fps: float | None = number(None, above=0)
    min_frames: int | None = number(None, least=2)
    max_frames: int | None = number(None, least=2)
    min_pixels: int | None = number(None, least=CELL)
    max_pixels: int | None = number(None, least=CELL)
    total_pixels: int | None = number(None, least=CELL)
    times: str | None = names(None, *TIMES)
    dtype: str = names("auto", "auto", "float32", "bfloat16", "float16")  # of the weights; auto: the checkpoint's own
    device: str = device("cuda" if torch.cuda.is_available() else "cpu")  # cpu, cuda or cuda:INDEX
    attention: str = names("sdpa", *ATTENTION, pattern=".+/.+")
    max_new_tokens: int = number(128, least=1)  # the longest answer
    sample: bool = False  # sample tokens; false: greedy decoding
    temperature: float = number(1.0, above=0)  # of sampling
    top_k: int = number(0, least=0)  # sample among so many likeliest tokens; 0: all
    top_p: float = number(1.0, above=0, most=1)  # sample among the likeliest tokens of this total probability
    repetition_penalty: float = number(1.0, above=0)  # above 1: tokens that have occurred become less likely
    seed: int = number(0, least=0, below=2**63)  # of sampling
    logprobs: int = number(0, least=0)  # print the log-probabilities of so many likeliest tokens per step
    json: bool = False  # print everything as one JSON object


def main(options: Options) -> None:
    check_rate(options.rate)
    if not options.sample:
        cli.refuse_unused(options, SAMPLING, "on greedy decoding: add sample=true")
    options = filled(options, checkpoint_policy(options.model))
    method = method_named(cast(str, options.method), options.scorer_dtype, options.prune_at)
    encoder = encoder_of(
        options.model, FramePolicy(**{field.name: getattr(options, field.name) for field in fields(FramePolicy)})
    )
    batch, processor = read(options, encoder), encoder.processor
    load_options = {"dtype": options.dtype, "attn_implementation": options.attention}
    model: Any = load_pretrained(hf.AutoModelForImageTextToText, options.model, **load_options)
    adapter = adapter_for(model.to(options.device).eval(), cast(str, options.scheme))
    check_place(adapter, method)
    torch.manual_seed(options.seed)
    started, times = perf_counter(), Times()
    (out,) = generate(model, adapter, batch, options.rate, method=method, streamer=times, **settings(options))
    seconds = times.seconds[1] - started
    answer = processor.tokenizer.decode(out.tokens, skip_special_tokens=True)
    if options.json:
        print(json.dumps(report(out, batch, answer, seconds)))
    else:
        print(answer)
        print(f"{out.prompt_tokens} tokens, {out.kept_tokens} after pruning; first token after {seconds:.2f} s")
        for step, (token, top) in enumerate(zip(out.tokens, out.logprobs), 1):
            listed = "  ".join(f"{processor.tokenizer.decode([id])!r} {value:.3f}" for id, value in top.items())
            print(f"{step:4d} {processor.tokenizer.decode([token])!r}: {listed}")


def read(options: Options, encoder: Encoder) -> Batch:
    """The prompt and its media, encoded as in training. RowError if they do not match, MediaError if one cannot be
    read."""
    videos, images = _listed(options.video), _listed(options.image)
    text = options.prompt
    if not MARK.search(text):
        text = "<image>" * len(images) + "<video>" * len(videos) + text
    media = Media({"video": videos, "image": images}, Folder(""), "prompt")
    parts = media.split(text)
    media.check_all_taken()
    encoding = encoder.prompt(Sample("prompt", (Turn("user", parts),)))
    return collate([encoding], filler_token=0)


@dataclass
class Times:
    """A streamer that records when the prompt and each new token were received."""

    seconds: list[float] = field(default_factory=list)

    def put(self, _: Any) -> None:
        self.seconds.append(perf_counter())

    def end(self) -> None:
        pass


def settings(options: Options) -> dict[str, Any]:
    """The options of decoding, as `evs.generate.generate` takes them."""
    sampling = ("temperature", "top_k", "top_p") if options.sample else ()
    keys = ("max_new_tokens", "repetition_penalty", "logprobs", *sampling)
    return {"do_sample": options.sample} | {key: getattr(options, key) for key in keys}


def report(out: Generation, batch: Batch, answer: str, seconds: float) -> dict[str, Any]:
    return {
        "answer": answer,
        "prompt_ids": batch.input_ids_N.tolist(),
        "prompt_tokens": out.prompt_tokens,
        "kept_tokens": out.kept_tokens,
        "kept_per_frame": [list(frames) for frames in out.frames],
        "output_ids": list(out.tokens),
        "logprobs": [{str(id): value for id, value in top.items()} for top in out.logprobs],
        "seconds_to_first_token": seconds,
    }


def _listed(files: Any) -> list[str]:
    return [] if files is None else [files] if isinstance(files, str) else list(files)


if __name__ == "__main__":
    cli.run(main, Options)
