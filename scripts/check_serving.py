"""Does a real vLLM answer as the trained model does? The same prompts through evs.generate and through the server.

    python scripts/check_serving.py model=DIR vllm_python=ENV/bin/python [rates=[0,0.5,0.75]] [cases=[square,1 fps]]
        [videos=[a.mp4,b.avi]] [chunks=[0,64]] [servers=[stock,plugin]] [method=vidcom2] [scheme=vllm]
        [dtype=float32] [device=cpu]

Prints one row per case and one column per rate: the largest difference of the server's top-5 log-probabilities over
the first 8 greedy tokens, as far as both sides chose the same tokens, and the number of tokens at other positions. The
exit status is 1 if lengths, positions, tokens or log-probabilities differ. docs/serving_check.md explains the cells.

With `videos` both sides read the files themselves, the server with its own loader. Frames, times, grid and pixels are
then compared too, and the table names the first stage at which a clip differs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from transformers import AutoConfig, AutoProcessor

from data.collate import collate
from data.encoding.encoder import Encoder
from data.media.frames import FramePolicy
from evs.families import spec_of
from evs.methods import method_named
from scripts.serving.cases import CASES, Case, clip, picture, server_metadata
from scripts.serving.compare import Verdict, compare, share_of_ties, summary
from scripts.serving.files import compare_file
from scripts.serving.files import prepare as prepare_files
from scripts.serving.ours import STEPS, TOP, Answer, Ours
from scripts.serving.prompts import Prompt, without_headers
from train import cli
from train.export.serving_metadata import architecture, checkpoint_policy, filled, frames_of, media_io
from train.model import encoder_of, load_pretrained
from train.ranges import device, names, number, pruning_rates
from train.reports.markdown import markdown_table

SERVED = ("evs", "vidcom2")  # --video-pruning-method
FLAGS = ("export", "default")
ERROR_PREFIXES = ("error:", "Value error,")  # of lines that give the reason; the latter under a ValidationError
SERVERS = {"plugin": "", "stock": "stock "}  # prefixes of the columns in the table

Key = tuple[str, str, float, int]  # server, case, rate, chunk


@dataclass(frozen=True)
class Options:
    model: str  # a checkpoint's folder or Hub id
    # Python of an environment with vLLM and this package; default: $EVS_VLLM_PYTHON
    vllm_python: str = os.environ.get("EVS_VLLM_PYTHON", "")
    rates: list[float] = pruning_rates([0.0, 0.5, 0.75])  # pruning rates
    cases: list[str] = names(list(CASES), *CASES, fewest=1)  # prompts of scripts/serving/cases.py
    videos: list[str] = field(default_factory=list)  # video files to compare instead of the cases
    # for videos: export (frame rate and limits as `export.py` prints them) or default
    server_flags: str = names("export", *FLAGS)
    # max_num_batched_tokens of the server, which splits longer prefills; 0: no split
    chunks: list[int] = number([0], least=0, fewest=1, unique=True)
    servers: list[str] = names(["plugin"], *SERVERS, fewest=1)  # plugin, stock or both
    method: str | None = None  # pruning method of both sides; default: that of evs.json, also for prune_at and scheme
    prune_at: str | None = None  # merger, or input for method=pixel_delta; as in evs.json, which the server reads
    scheme: str | None = None  # positions on our side; vllm: those of a stock server (Qwen2.5-VL)
    # of both sides; in bfloat16 two implementations round differently
    dtype: str = names("float32", "float32", "bfloat16", "float16")
    device: str = device("cpu")  # for our side: cpu, cuda or cuda:INDEX
    tolerance: float = number(1e-3, above=0)  # largest accepted difference of log-probabilities
    table: str | None = None  # file for the table
    engine: dict[str, Any] = field(default_factory=dict)  # further arguments of vLLM's LLM, as {tensor_parallel_size:2}


def main(options: Options) -> None:
    if options.table:
        Path(options.table).parent.mkdir(parents=True, exist_ok=True)
    verdicts = check(options)
    text = table(verdicts, options)
    print(text)
    if options.table:
        Path(options.table).write_text(text + "\n")
    for (server, name, rate, chunk), verdict in verdicts.items():
        if verdict.error:
            print(f"{server}, {name}, rate {rate:g}, chunk {chunk}: {verdict.error}", file=sys.stderr)
    if shared := share_of_ties(list(verdicts.values())):
        print(shared)
    if problem := summary(list(verdicts.values()), options.tolerance):
        raise SystemExit(problem)


def check(options: Options) -> dict[Key, Verdict]:
    """The verdict on every case at every rate and chunk length, for each server."""
    options = filled(options, checkpoint_policy(options.model))
    _check(options)
    if options.videos:
        return _check_files(options)
    prompts = {prompt.name: prompt for prompt in prepare(options.model, {name: CASES[name] for name in options.cases})}
    return {
        key: compare(answer, theirs, options.tolerance)
        for key, answer, theirs in _answers(list(prompts.values()), options, options.engine)
    }


def _check_files(options: Options) -> dict[Key, Verdict]:
    policy = checkpoint_policy(options.model)
    prompts, refused = prepare_files(options.model, options.videos, frames_of(policy))
    named = {prompt.name: prompt for prompt in prompts}
    exported = options.server_flags == "export"
    flags = {"media_io_kwargs": media_io(policy, architecture(options.model))} if exported else {}
    engine = {"allowed_local_media_path": "/", **flags}
    verdicts = {
        key: compare_file(named[key[1]], answer, theirs, options.tolerance)
        for key, answer, theirs in _answers(prompts, options, engine | options.engine)
    }
    runs = [(server, rate, chunk) for server in options.servers for rate in options.rates for chunk in options.chunks]
    return verdicts | {(server, name, rate, chunk): refused[name] for server, rate, chunk in runs for name in refused}


def _answers(
    prompts: list[Prompt], options: Options, engine: dict[str, Any]
) -> Iterator[tuple[Key, Answer, dict[str, Any]]]:
    """(key, our answer, the server's answer) of every prompt at every rate."""
    answers = [item for server in options.servers for item in serve(prompts, options, server, engine).items()]
    method = method_named(cast(str, options.method), prune_at=cast(str, options.prune_at))
    ours = Ours(options.model, method, cast(str, options.scheme), options.dtype, options.device)
    batches = {prompt.name: prompt.batch for prompt in prompts}
    for key, theirs in answers:
        _, name, rate, _ = key
        yield key, ours.answer(name, batches[name], rate, theirs.get("kept", [])), theirs


def prepare(model: str, cases: dict[str, Case]) -> list[Prompt]:
    """The cases as prompts at this checkpoint's patch size, encoded as in training."""
    template = without_headers(load_pretrained(AutoProcessor, model))
    encoders = {
        chat: encoder_of(model, FramePolicy(), chat_template=None if chat else template) for chat in (True, False)
    }
    return [_prompt(name, case, encoders[case.chat]) for name, case in cases.items()]


def serve(
    prompts: list[Prompt], options: Options, server: str, engine: dict[str, Any] | None = None
) -> dict[Key, dict[str, Any]]:
    """The answers of vLLM, which runs in its own Python process, with or without the plugin."""
    if not prompts:
        return {}
    request = {
        "model": options.model,
        "dtype": options.dtype,
        "plugin": server == "plugin",
        "steps": STEPS,
        "top": TOP,
        "max_model_len": max(len(prompt.batch.input_ids_N) for prompt in prompts) + 64,
        "engine": _method(options.method) | (engine or {}),
        "runs": [{"rate": rate, "chunk": chunk} for chunk in options.chunks for rate in options.rates],
        "cases": [prompt.request for prompt in prompts],
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "request.json").write_text(json.dumps(request))
        media: dict[str, Any] = {key: value for prompt in prompts for key, value in prompt.media.items()}
        np.savez(Path(folder, "media.npz"), **media)
        worker = Path(__file__).with_name("serving") / "worker.py"
        mode = os.environ.get("EVS_VLLM_PLUGIN", "1") if server == "plugin" else "0"
        environment = {**os.environ, "EVS_VLLM_PLUGIN": mode}
        done = subprocess.run(
            [options.vllm_python, str(worker), folder], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ValueError(f"vLLM ended with status {done.returncode}: {_last_error(done.stderr or done.stdout)}")
        answers = json.loads(Path(folder, "answers.json").read_text())
    return {(server, answer["case"], answer["rate"], answer["chunk"]): answer for answer in answers}


def _method(name: str | None) -> dict[str, str]:
    # evs is the server's default and also computes the count of pixel_delta
    return {} if name in (None, "evs", "pixel_delta") else {"video_pruning_method": name}


def table(verdicts: dict[Key, Verdict], options: Options) -> str:
    """A Markdown table with one row per case; cells that differ are bold."""
    runs = [(server, rate, chunk) for server in options.servers for chunk in options.chunks for rate in options.rates]
    heads = [f"{SERVERS[server]}{rate:g}" + f", chunks of {chunk}" * bool(chunk) for server, rate, chunk in runs]
    rows = []
    for name in options.videos or options.cases:
        cells = [verdicts[server, name, rate, chunk] for server, rate, chunk in runs]
        rows.append([Path(name).name, *(cell.text if cell.agrees else f"**{cell.text}**" for cell in cells)])
    return markdown_table(["case", *heads], rows)


def _prompt(name: str, case: Case, encoder: Encoder) -> Prompt:
    vision = encoder.processor.video_processor
    cell = vision.patch_size * vision.merge_size
    clips = [clip(video, cell, seed) for seed, video in enumerate(case.videos)]
    pictures = [picture(part.shape, cell, seed) for seed, part in enumerate(case.pictures)]
    sample = case.sample()
    media = {f"{name}/video{i}": video.frames_THWC for i, video in enumerate(clips)}
    videos = [{"key": key, "metadata": server_metadata(video)} for key, video in zip(media, clips)]
    images = {f"{name}/image{i}": image for i, image in enumerate(pictures)}
    text = encoder.chat(sample, generate=True)
    return Prompt(
        name=name,
        batch=collate([encoder.encode_clips(sample, clips, pictures, generate=True)], filler_token=0),
        request={"name": name, "prompt": text, "videos": videos, "images": list(images)},
        media=media | images,
    )


def _check(options: Options) -> None:
    if (options.method, options.prune_at) == ("pixel_delta", "input"):
        if checkpoint_policy(options.model).prune_at != "input":
            raise ValueError("prune_at=input: the server reads it from the checkpoint's evs.json, which says merger")
        if "stock" in options.servers:
            raise ValueError("prune_at=input: a stock server encodes all tokens; remove stock from servers=")
    elif options.method not in SERVED or options.prune_at != "merger":
        raise ValueError(
            f"method={options.method} prune_at={options.prune_at} is not served; use {' or '.join(SERVED)}, or "
            "pixel_delta at input"
        )
    for video in options.videos:
        if not Path(video).is_file():
            raise ValueError(f"videos: {video} does not exist: give video files")
    spec_of(load_pretrained(AutoConfig, options.model))
    if not options.vllm_python:
        raise ValueError("vllm_python= is missing: give the Python of an environment with vLLM and this package")
    if not Path(options.vllm_python).exists():
        raise ValueError(
            f"vllm_python={options.vllm_python} does not exist: build one with scripts/serving/vllm_env.sh DIR"
        )


def _last_error(output: str) -> str:
    """The line of vLLM's output that gives the reason, without the frame that pydantic puts around it."""
    stripped = [re.sub(r"^\[rank\d+\]:", "", line).strip() for line in output.splitlines()]  # once torch has ranks
    lines = [line for line in stripped if "Error" in line or line.startswith(ERROR_PREFIXES)]
    reason = (lines or output.strip().splitlines() or ["no output"])[-1]
    return re.sub(rf"^({'|'.join(ERROR_PREFIXES)}) | \[type=value_error.*$", "", reason)


if __name__ == "__main__":
    cli.run(main, Options)
