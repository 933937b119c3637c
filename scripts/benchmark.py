"""Benchmarks: our code and the stock code of transformers, timed side by side in one process.

python scripts/benchmark.py step|prefill|mask|profile [shape=small] [rates=[0,0.5]] [out=FILE.json]
python scripts/benchmark.py batching|decode [out=FILE.json]
python scripts/benchmark.py index [rows=200000] [files=2000] [ranks=2] [out=FILE.json]
python scripts/benchmark.py media [count=1000] [workers=2] | ranks [shape=small] [steps=20]
python scripts/benchmark.py long [shape=small] [tokens=32768] [ranks=2] [rates=[0,0.75]]
python scripts/benchmark.py real_run [shape=small] [steps=200] [workers=4] | gpu_tests [marks=gpu]
python scripts/benchmark.py serving vllm_python=ENV/bin/python [quick=true] [figure=FILE.png] [out=FILE.json]
python scripts/benchmark.py gpu out=DIR [minutes=10] [parts=[step,profile]] [device=cpu shape=tiny]
python scripts/benchmark.py peers [peers=[trl,llamafactory,ms_swift,trainer]] [folder=runs/peers] [out=FILE.json]

Figures are medians over `rounds` rounds. Every variant runs once per round, after a warm-up. Weights are random and
nothing is downloaded. On a CPU, only the ratios are meaningful.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: imports start at the repository root, not in scripts/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from scripts.bench import data as bench_data
from scripts.bench import index as bench_index
from scripts.bench import long as bench_long
from scripts.bench import media as bench_media
from scripts.bench import ranks as bench_ranks
from scripts.bench import step as bench_step
from scripts.bench.gpu import real_run, schedule, suite
from scripts.bench.models import ANSWER, PROMPT, Shape, build_shape, model_config
from scripts.bench.peers import comparison
from scripts.bench.prefill import prefill
from scripts.bench.profile import profile
from scripts.bench.serving import throughput
from scripts.bench.setting import EXTRAS, FROZEN, Setting
from train import cli
from train.config import ATTENTION
from train.metrics.machine import machine
from train.ranges import names, number, pruning_rates

DATA = {"batching": bench_data.batching, "decode": bench_data.decode}
MODEL = {"step": bench_step.step, "prefill": prefill, "mask": bench_step.mask, "profile": profile}
OWN: dict[str, tuple[Any, Any]] = {  # benchmarks with options of their own
    "index": (bench_index.Options, bench_index.index),
    "long": (bench_long.Options, bench_long.long),
    "media": (bench_media.Options, bench_media.media),
    "peers": (comparison.Options, comparison.compare),
    "ranks": (bench_ranks.Options, bench_ranks.ranks),
    "serving": (throughput.Options, throughput.serving),
    "real_run": (real_run.Options, real_run.real_run),
    "gpu_tests": (suite.Options, suite.suite),
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass
class Options:
    shape: str = "small"  # one of scripts/bench/models.py
    rates: list[float] = pruning_rates([0.0, 0.25, 0.5, 0.75, 0.9])  # pruning rates to measure
    rounds: int = number(5, least=1)  # every variant runs once per round; figures are medians over rounds
    dtype: str = names("bfloat16", *DTYPES)  # of weights and activations
    attention: str = names("sdpa", *ATTENTION, pattern=".+/.+")
    clips: int | None = number(None, least=1)  # clips of the batch; null: those of the shape
    checkpointing: bool = False  # step: recompute activations, as train/run.py does by default
    compile: bool = False  # step: torch.compile of the language model's layers
    towers: list[str] = names(list(FROZEN), *FROZEN)  # step: with a frozen vision tower, a trained one, or both
    extras: list[str] = names(list(EXTRAS), *EXTRAS)  # step, prefill: additional measurements
    tokens: int | None = number(None, least=1)  # prefill: video tokens of the clip; null: four times those of the shape
    out: str | None = None  # JSON file for the figures


def measure(what: str, options: Any) -> dict[str, Any]:
    """Run one benchmark. Prints its figures and returns them."""
    if what in OWN:
        return OWN[what][1](options)
    if what in DATA:
        return DATA[what](options.rounds)
    shape, device = shape_of(options), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setting = Setting(
        *(shape, options.rates, options.rounds, device, DTYPES[options.dtype], options.attention),
        *(options.checkpointing, options.compile, options.towers, options.extras, options.tokens),
    )
    try:
        return MODEL[what](setting)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"out of memory at shape={options.shape}: {str(error).splitlines()[0]}") from error


def shape_of(options: Options) -> Shape:
    shape = build_shape(options.shape)
    return shape if options.clips is None else replace(shape, clips=options.clips)


def describe(options: Options) -> dict[str, Any]:
    """Sizes of the shape: parameters in millions, clips, and tokens of a clip."""
    shape = shape_of(options)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(model_config(shape))
    millions = {
        name: round(sum(p.numel() for p in part.parameters()) / 1e6, 1)
        for name, part in {
            "all": model,
            "vision": model.model.visual,
            "embedding": model.get_input_embeddings(),
        }.items()
    }
    t, h, w = shape.grid
    return {
        "parameters_m": millions,
        "clips": shape.clips,
        "video_tokens_a_clip": t * h * w,
        "text_tokens_a_clip": PROMPT + ANSWER,
    }


def main() -> None:
    what, *words = sys.argv[1:] or [""]
    if what in ("-h", "--help"):
        cli.parse(Options, [what])
    if what == "gpu":
        cli.run(schedule.run, schedule.Options, words)
        return
    benchmarks = [*MODEL, *DATA, *OWN, "gpu"]
    if what not in benchmarks:
        cli.fail(f"{what or 'nothing'!r} is not a benchmark: use one of {', '.join(benchmarks)}")
    options: Any = cli.parse(OWN[what][0] if what in OWN else Options, words)
    with cli.one_line_errors():
        context = {"what": what, "machine": machine(), "options": asdict(options)}
        if what in MODEL:
            context["shape"] = describe(options)
        print(json.dumps(context))
        result = context | {"result": measure(what, options)}
        if options.out:
            Path(options.out).parent.mkdir(parents=True, exist_ok=True)
            Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
            print(f"figures: {options.out}")


if __name__ == "__main__":
    main()
