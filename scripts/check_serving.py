"""Does a real vLLM answer as the trained model does? The same prompts through evs.generate and through the server.

    python scripts/check_serving.py model=DIR vllm_python=ENV/bin/python [rates=[0,0.5,0.75]] [cases=[square,1 fps]]
        [videos=[a.mp4,b.avi]] [chunks=[0,64]] [servers=[stock,plugin]] [method=vidcom2] [scheme=vllm]
        [dtype=float32] [device=cpu]

Prints one line a case and one column a rate: the largest difference of the server's top-5 log-probabilities over the
first 8 greedy tokens, as far as both chose the same tokens, and how many tokens stand at another position. Exit
status 1 where lengths, positions, tokens or log-probabilities differ. Where the server kept other tokens of equal
score ("tie of 2"), its choice is taken over before the comparison; a prompt that is too long for the server is no
difference. `chunks` are values of the server's max_num_batched_tokens: below a prompt's length its prefill comes in
several steps; 0 is a length that all prompts fit. `engine` takes more arguments of vLLM's LLM.

`videos` are files that both sides read themselves, the server by its own loader and started as `export.py` prints
(server_flags=default: without its flags). Frames, times, grid and pixels are compared too, and a clip that differs is
shown with the first stage at which it does.
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
from evs.selection import check_rate
from scripts.serving.cases import CASES, Case, clip, picture, server_metadata
from scripts.serving.compare import Verdict, compare, share_of_ties, summary
from scripts.serving.files import compare_file
from scripts.serving.files import prepare as prepare_files
from scripts.serving.ours import STEPS, TOP, Answer, Ours
from scripts.serving.prompts import Prompt, without_headers
from train import cli
from train.export.serving_metadata import architecture, beside, filled, frames_of, media_io
from train.model import encoder_of, load_pretrained
from train.ranges import number, pruning_rates
from train.reports.markdown import markdown_table

SERVED = ("evs", "vidcom2")  # --video-pruning-method
FLAGS = ("export", "default")
SAID = ("error:", "Value error,")  # how lines begin that say why, the latter under a ValidationError
SERVERS = {"plugin": "", "stock": "stock "}  # what each is called in the table

Key = tuple[str, str, float, int]  # server, case, rate, chunk


@dataclass(frozen=True)
class Options:
    model: str  # a checkpoint's folder or Hub id
    vllm_python: str = os.environ.get(
        "EVS_VLLM_PYTHON", ""
    )  # of an environment with vLLM and this package; default: $EVS_VLLM_PYTHON
    rates: list[float] = pruning_rates([0.0, 0.5, 0.75])  # pruning rates
    cases: list[str] = field(default_factory=lambda: list(CASES))  # of scripts/serving/cases.py
    videos: list[str] = field(default_factory=list)  # files, in place of the cases
    server_flags: str = "export"  # for videos: export, the frame rate and limits that `export.py` prints, or default
    chunks: list[int] = number([0], least=0, fewest=1, unique=True)  # tokens that the server prefills at a time; 0: all
    servers: list[str] = field(default_factory=lambda: ["plugin"])  # plugin, stock or both
    method: str | None = None  # of both sides; this and scheme: as evs.json says
    prune_at: str | None = None  # of our side: input, for method=pixel_delta; as evs.json says, as the server reads it
    scheme: str | None = None  # of our side; vllm: a stock server's (Qwen2.5-VL)
    dtype: str = "float32"  # of both sides; bfloat16 rounds differently in two implementations
    device: str = "cpu"  # of our side: cpu or cuda
    tolerance: float = number(1e-3, above=0)  # of log-probabilities
    table: str | None = None  # a file to write the table to
    engine: dict[str, Any] = field(default_factory=dict)  # as {tensor_parallel_size:2}


def main(options: Options) -> None:
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
    """A verdict on every case at every rate, for each of the server's chunk lengths."""
    options = filled(options, beside(options.model))
    _check(options)
    if options.videos:
        return _check_files(options)
    prompts = {one.name: one for one in prepare(options.model, {name: CASES[name] for name in options.cases})}
    return {
        key: compare(answer, theirs, options.tolerance)
        for key, answer, theirs in _asked(list(prompts.values()), options, options.engine)
    }


def _check_files(options: Options) -> dict[Key, Verdict]:
    policy = beside(options.model)
    prompts, refused = prepare_files(options.model, options.videos, frames_of(policy))
    named = {prompt.name: prompt for prompt in prompts}
    exported = options.server_flags == "export"
    flags = {"media_io_kwargs": media_io(policy, architecture(options.model))} if exported else {}
    engine = {"allowed_local_media_path": "/", **flags}
    verdicts = {
        key: compare_file(named[key[1]], answer, theirs, options.tolerance)
        for key, answer, theirs in _asked(prompts, options, engine | options.engine)
    }
    runs = [(server, rate, chunk) for server in options.servers for rate in options.rates for chunk in options.chunks]
    return verdicts | {(server, name, rate, chunk): refused[name] for server, rate, chunk in runs for name in refused}


def _asked(
    prompts: list[Prompt], options: Options, engine: dict[str, Any]
) -> Iterator[tuple[Key, Answer, dict[str, Any]]]:
    """(key, our answer, the server's) to every prompt at every rate."""
    answers = [each for server in options.servers for each in serve(prompts, options, server, engine).items()]
    method = method_named(cast(str, options.method), prune_at=cast(str, options.prune_at))
    ours = Ours(options.model, method, cast(str, options.scheme), options.dtype, options.device)
    batches = {prompt.name: prompt.batch for prompt in prompts}
    for key, theirs in answers:
        _, name, rate, _ = key
        yield key, ours.answer(name, batches[name], rate, theirs.get("kept", [])), theirs


def prepare(model: str, cases: dict[str, Case]) -> list[Prompt]:
    """The cases at this checkpoint's patch size, encoded by the trainer's own encoder."""
    template = without_headers(load_pretrained(AutoProcessor, model))
    encoders = {
        chat: encoder_of(model, FramePolicy(), chat_template=None if chat else template) for chat in (True, False)
    }
    return [_prompt(name, case, encoders[case.chat]) for name, case in cases.items()]


def serve(
    prompts: list[Prompt], options: Options, server: str, engine: dict[str, Any] | None = None
) -> dict[Key, dict[str, Any]]:
    """What vLLM answers, in its own process and its own Python, with the plugin or as it comes."""
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
    return {(server, one["case"], one["rate"], one["chunk"]): one for one in answers}


def _method(name: str | None) -> dict[str, str]:
    # evs is the server's default, and counts for pixel_delta
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
    pictures = [picture(one.shape, cell, seed) for seed, one in enumerate(case.pictures)]
    sample = case.sample()
    media = {f"{name}/video{i}": one.frames_THWC for i, one in enumerate(clips)}
    videos = [{"key": key, "metadata": server_metadata(one)} for key, one in zip(media, clips)]
    images = {f"{name}/image{i}": one for i, one in enumerate(pictures)}
    text = encoder.chat(sample, generate=True)
    return Prompt(
        name=name,
        batch=collate([encoder.encode_clips(sample, clips, pictures, generate=True)], filler_token=0),
        request={"name": name, "prompt": text, "videos": videos, "images": list(images)},
        media=media | images,
    )


def _check(options: Options) -> None:
    for rate in options.rates:
        check_rate(rate)
    for kind, asked, known in (
        ("case", options.cases, CASES),
        ("server", options.servers, SERVERS),
        ("server_flags", [options.server_flags], FLAGS),
    ):
        for name in asked:
            if name not in known:
                raise ValueError(f"no {kind} {name!r}{cli.suggest(name, list(known))}")
    if (options.method, options.prune_at) == ("pixel_delta", "input"):
        if beside(options.model).prune_at != "input":
            raise ValueError("prune_at=input: the server reads it from the checkpoint's evs.json, which says merger")
        if "stock" in options.servers:
            raise ValueError("prune_at=input: a stock server gives its tower every token; leave servers=[stock] out")
    elif options.method not in SERVED or options.prune_at != "merger":
        raise ValueError(
            f"method={options.method} prune_at={options.prune_at}: no server prunes so; use {' or '.join(SERVED)}, or "
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
    """The line that says why; of pydantic's, which checks vLLM's configuration, the reason without its frame."""
    said = [re.sub(r"^\[rank\d+\]:", "", line).strip() for line in output.splitlines()]  # once torch has ranks
    lines = [line for line in said if "Error" in line or line.startswith(SAID)]
    reason = (lines or output.strip().splitlines() or ["no output"])[-1]
    return re.sub(rf"^({'|'.join(SAID)}) | \[type=value_error.*$", "", reason)


if __name__ == "__main__":
    cli.run(main, Options)
