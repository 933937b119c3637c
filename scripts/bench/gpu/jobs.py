"""The jobs of the GPU benchmark in order of value. Each is a command of scripts/benchmark.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.models import missing_kernel
from scripts.bench.peers.frameworks import PEERS

PARTS = ("tests", "step", "prefill", "peers", "train", "profile", "serving")
SHAPES = ("qwen2_5_vl_7b", "qwen2_5_vl_3b")
RATES = "rates=[0,0.5,0.75,0.9]"
PREFILLS = (2048, 8192, 32768, 65536)  # video tokens
SMALL_PREFILLS = (128, 512)
KERNELS = ("flash_attention_3", "flash_attention_2", "flex_attention")


@dataclass(frozen=True)
class Job:
    """One measurement."""

    part: str
    name: str
    words: tuple[str, ...]
    seconds: float  # time limit
    missing: str | None = None  # what this machine lacks for it, in one line


def jobs(shape: str | None, gpu: bool, folder: Path) -> Iterator[Job]:
    """The jobs, most valuable first, for one shape or, if `shape` is None, for those of the 7B and the 3B. Jobs keep
    data that later jobs use again in `folder`."""
    shapes, large = (shape,) if shape else SHAPES, shape is None
    first, last = shapes[0], shapes[-1]
    no_gpu = None if gpu else "the tests need a CUDA device"
    yield Job("tests", "tests_kernels", ("gpu_tests", "marks=gpu and not slow"), 180, no_gpu)
    for name in shapes:
        yield _step(name, "frozen", "sdpa", gpu)
    yield Job("profile", f"profile_{first}", ("profile", *_model(first), "rates=[0.75]", "towers=[frozen]"), 150)
    words = ("real_run", f"shape={last}", f"steps={200 if gpu else 8}", "workers=4", f"folder={folder / 'real_run'}")
    yield Job("train", f"train_{last}", words, 300)
    for attention in KERNELS:
        yield from (_step(name, "frozen", attention, gpu) for name in shapes)
    yield from (_step(name, "frozen", "sdpa", gpu, compiled=True) for name in shapes)
    for tokens in PREFILLS if large else SMALL_PREFILLS:
        for name in shapes:
            yield _prefill(name, tokens)
    yield from (_step(name, "trained", "sdpa", gpu) for name in shapes)
    yield _peers(large, folder)
    yield _serving(last)
    yield Job("tests", "tests_engines", ("gpu_tests", "marks=gpu and slow", "processes=4"), 480, no_gpu)


def _model(shape: str, attention: str = "sdpa") -> tuple[str, ...]:
    return (f"shape={shape}", f"attention={attention}", "checkpointing=true")


def _step(shape: str, tower: str, attention: str, gpu: bool, compiled: bool = False) -> Job:
    name = "_".join(["step", shape, tower, attention, *["compiled"] * compiled])
    words = ("step", *_model(shape, attention), RATES, "rounds=2", "extras=[]", f"towers=[{tower}]")
    return Job("step", name, (*words, f"compile={str(compiled).lower()}"), 240, missing_kernel(attention, gpu))


def _prefill(shape: str, tokens: int) -> Job:
    words = ("prefill", f"shape={shape}", RATES, "rounds=2", "extras=[]", f"tokens={tokens}")
    return Job("prefill", f"prefill_{shape}_{tokens}", words, 150)


def _serving(shape: str) -> Job:
    """Two servers at a time, with and without pruning. It starts no server whose results are there."""
    words = ("serving", f"shape={shape}", "rates=[0,0.75]", "concurrency=[1,8,32]", "answers=[8]", "requests=32")
    missing = None if os.environ.get("EVS_VLLM_PYTHON") else "EVS_VLLM_PYTHON names no Python with vLLM"
    flags = "flags=--max-model-len 16384 --gpu-memory-utilization 0.4"  # a clip of the shapes has 8,192 tokens
    return Job("serving", f"serving_{shape}", (*words, "files=[distinct]", "together=2", flags), 900, missing)


def _peers(large: bool, folder: Path) -> Job:
    """transformers' Trainer needs no installation; the other frameworks are installed if pip knows a folder of
    wheels."""
    names = [*PEERS] if os.environ.get("PIP_FIND_LINKS") else ["trainer"]
    modes, samples = ("[batch 1,batch 2]", 20) if large else ("[batch 1]", 2)
    words = ("peers", f"peers=[{','.join(names)}]", f"modes={modes}", "rounds=1", f"samples={samples}")
    return Job("peers", "peers", (*words, f"folder={folder / 'peers'}"), 300)
