"""Requests per second of real servers with and without pruning, from one client to many.

Servers that are compared run at the same time and take turns: each load is sent to one after another, so that other
programs on the machine disturb all of them alike. Results are kept in `folder`, so the same command continues.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.progress import progress_bar
from data.synthetic.video import write_video
from evs.policy import Policy
from scripts.bench.gpu.real_run import sizes_of
from scripts.bench.models import build_shape
from scripts.bench.records import fingerprint, read_json, write_json
from scripts.bench.serving.load import Request, send
from scripts.bench.serving.server import COUNTERS, Server, Variant, started
from scripts.bench.timing import table
from scripts.make_tiny_model import make
from train.ranges import names, number, pruning_rates
from train.reports.curve import STYLES
from train.reports.figures import blank

CODE = ("evs", "scripts/bench/serving")
FPS, PIXELS = 8, 28  # of the files; a token's side
KINDS = ("stock", "plugin", "before_tower")
FILES = ("distinct", "repeated", "faulty")
PHASES = ("decode", "processor", "encoder", "selection", "positions", "scheduling", "language model")
BASE = "rate 0"


@dataclass
class Options:
    vllm_python: str = os.environ.get("EVS_VLLM_PYTHON", "")  # of an environment with vLLM and this package
    shape: str = "serving"  # one of scripts/bench/models.py; on a GPU: qwen2_5_vl_3b
    rates: list[float] = pruning_rates([0.0, 0.5, 0.75, 0.9])  # pruning rates; 0 is the server without pruning
    kinds: list[str] = names(list(KINDS), *KINDS)  # stock vLLM, the plugin, and the plugin pruning before the tower
    # clients at once; the first of files= and answers= is sent from each, the others from the middle number
    concurrency: list[int] = number([1, 2, 4, 8, 16], fewest=1, unique=True, least=1)
    files: list[str] = names(list(FILES), *FILES)  # new files, the same file again, or some broken files and clients
    answers: list[int] = number([8, 64], fewest=1, unique=True, least=1)  # tokens of an answer
    requests: int = number(16, least=1)  # per load; not fewer than twice the clients
    together: int = number(5, least=2)  # servers that run at the same time; on a GPU that holds one model more: 2
    quick: bool = False  # rates 0 and .75, 1 and 4 clients, short answers, 8 requests
    flags: str = "--max-model-len 4096 --max-num-seqs 16 --enforce-eager"  # further flags of vllm serve
    start_seconds: float = number(600.0, above=0)  # time limit for the start of the servers
    timeout: float = number(300.0, above=0)  # seconds of one request
    folder: str = "runs/benchmark/serving"  # model, clips, logs and results
    figure: str | None = None  # PNG file: requests per second by clients, for the first of files= and answers=
    out: str | None = None  # JSON file for the figures


@dataclass(frozen=True)
class Load:
    files: str
    answer: int
    clients: int


def serving(options: Options) -> dict[str, Any]:
    """Figures of every server under every load."""
    if not Path(options.vllm_python).exists():
        raise ValueError(
            f"vllm_python={options.vllm_python or 'null'} does not exist: give the Python of an environment with vLLM "
            "and this package, built by scripts/serving/vllm_env.sh DIR"
        )
    if options.quick:
        options = replace(options, rates=[0.0, 0.75], concurrency=[1, 4], answers=options.answers[:1], requests=8)
    folder = Path(options.folder).resolve() / options.shape
    servers = list(variants(options, folder))
    loads = list(loads_of(options))
    clips = write_clips(folder / "clips", options, loads)
    base, *others = servers
    size = options.together - 1
    groups = [[base, *others[start : start + size]] for start in range(0, max(len(others), 1), size)]
    results: dict[str, Any] = {}
    with progress_bar(total=sum(map(len, groups)) * len(loads), desc="serving", unit="load") as bar:
        for index, group in enumerate(groups):
            results |= _group(options, folder / f"group_{index}", group, loads=loads, clips=clips, bar=bar)
    show(results, servers, loads)
    if options.figure:
        drawn = [load for load in loads if load.files == options.files[0] and load.answer == options.answers[0]]
        draw(results, servers, drawn, Path(options.figure))
    return results


def loads_of(options: Options) -> Iterator[Load]:
    """The first of files= and answers= at every number of clients, the others at the middle number."""
    first = (options.files[0], options.answers[0])
    middle = sorted(options.concurrency)[len(options.concurrency) // 2]
    for files, answer in product(options.files, options.answers):
        for clients in options.concurrency if (files, answer) == first else [middle]:
            yield Load(files, answer, clients)


def variants(options: Options, folder: Path) -> Iterator[Variant]:
    """The servers, first that without pruning, with their models."""
    whole, early = folder / "model", folder / "model_before_tower"
    if not (early / "evs.json").exists():
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            make("qwen2_5_vl", whole, **sizes_of(build_shape(options.shape)))
        shutil.copytree(whole, early, dirs_exist_ok=True)
        Policy(method="pixel_delta", prune_at="input", scorer_dtype=None).write(early)
    yield Variant(BASE, whole, 0.0)
    for rate in filter(None, options.rates):
        for kind in options.kinds:
            model = early if kind == "before_tower" else whole
            yield Variant(f"{kind.replace('_', ' ')} {rate:g}", model, rate, plugin=kind != "stock")


def write_clips(folder: Path, options: Options, loads: Sequence[Load]) -> list[Path]:
    """A file per request of all loads with new files; the last one is broken."""
    grids, height, width = build_shape(options.shape).grid
    count = sum(_requests(options, load) for load in loads if load.files != "repeated") + 1
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = folder / f"{index}.mp4"
        if not path.exists():
            blocks = np.random.default_rng(index).integers(0, 256, (2 * height, 2 * width, 3), np.uint8)
            picture = np.kron(blocks, np.ones((PIXELS // 2, PIXELS // 2, 1), np.uint8))
            frames = np.stack([np.roll(picture, 2 * i, axis=1) for i in range(FPS * grids)])  # two frames a second
            write_video(path.with_suffix(".partial.mp4"), frames, FPS)
            path.with_suffix(".partial.mp4").rename(path)
    broken = folder / "broken.mp4"
    broken.write_bytes((folder / "0.mp4").read_bytes()[:2000])
    return [*(folder / f"{index}.mp4" for index in range(count)), broken]


def _requests(options: Options, load: Load) -> int:
    return max(options.requests, 2 * load.clients)


def requests_of(options: Options, load: Load, loads: Sequence[Load], clips: Sequence[Path]) -> list[Request]:
    """The requests of a load. No other load has the files of one with new files."""
    count = _requests(options, load)
    first = sum(_requests(options, one) for one in loads[: loads.index(load)] if one.files != "repeated")
    videos = [clips[-2]] * count if load.files == "repeated" else list(clips[first : first + count])
    requests = [Request(video, f"What happens? {load.clients}, {n}", load.answer) for n, video in enumerate(videos)]
    if load.files == "faulty":
        requests[1::4] = [Request(clips[-1], one.question, one.tokens) for one in requests[1::4]]
        requests[3::4] = [Request(one.video, one.question, one.tokens, leaves=True) for one in requests[3::4]]
    return requests


def _group(
    options: Options,
    folder: Path,
    group: Sequence[Variant],
    *,
    loads: Sequence[Load],
    clips: Sequence[Path],
    bar: Any,
) -> dict[str, Any]:
    """Servers that take turns. They are started only if a result is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = [options.shape, options.flags, options.requests, options.vllm_python, fingerprint(*CODE)]
    paths = {(one, load): folder / f"{key(one, load)}.json" for load in loads for one in group}
    found = {pair: read_json(path) for pair, path in paths.items()}
    results = {pair: record for pair, record in found.items() if record and record["settings"] == settings}
    bar.update(len(results))
    with ExitStack() as stack:
        running = _start(options, folder, group, clips, stack) if len(results) < len(paths) else {}
        for (one, load), path in paths.items():
            if (one, load) not in results:
                figures = _measure(running[one], requests_of(options, load, loads, clips), load, options.timeout)
                results[one, load] = {"settings": settings, "load": asdict(load), **figures}
                write_json(path, results[one, load])
                bar.update()
    base = {load: max(results[group[0], load]["requests_per_s"], 1e-9) for load in loads}
    return {
        key(one, load): got | {"of_base": got["requests_per_s"] / base[load]} for (one, load), got in results.items()
    }


def _start(
    options: Options, folder: Path, group: Sequence[Variant], clips: Sequence[Path], stack: ExitStack
) -> dict[Variant, Server]:
    logs = {one: folder / f"{one.name}.log" for one in group}
    running = {}
    for one, log in logs.items():
        server = started(one, options.vllm_python, clips[0].parent, options.flags, log)
        running[one] = stack.enter_context(server)
        running[one].wait(log, options.start_seconds)  # one after another: starting needs the memory and the processor
        warm_up = [Request(clips[-2], f"Ready? {n}", 2) for n in range(2)]
        if failures := send(running[one].url, warm_up, 1, options.timeout)["failures"]:
            raise ValueError(
                f"{one.name}: requests of the warm-up failed ({failures}): change flags= or shape=; see {log}"
            )
    return running


def _measure(server: Server, requests: Sequence[Request], load: Load, timeout: float) -> dict[str, Any]:
    """Figures of the load; seconds of phases and of processors are per request."""
    before = server.reading()
    figures = send(server.url, requests, load.clients, timeout)
    after = server.reading()
    spent = {name: value - before.get(name, 0) for name, value in after.items()}
    figures["phases_ms"] = {name: 1000 * spent.get(f"{name} s", 0.0) / len(requests) for name in PHASES}
    figures["encoded"] = spent.get("encoder calls", 0)
    figures["busy_s"] = spent["busy s"] / len(requests)
    return figures | {name: spent.get(name, 0.0) for name in COUNTERS}


def show(results: dict[str, Any], servers: Sequence[Variant], loads: Sequence[Load]) -> None:
    """Print a table per load, one row per server."""
    caches = ("encoded", "prefix hits", "file hits")
    header = ("server", "requests/s", f"of {BASE}", "first token s", "99 %", "tokens/s", "busy s", *caches, *PHASES)
    for load in loads:
        rows = [(one.name, *_cells(results[key(one, load)])) for one in servers]
        print(f"\n{load.files} files, answers of {load.answer} tokens, clients: {load.clients}. Phases: ms per request")
        print(table((*header, "failures"), rows))


def _cells(got: dict[str, Any]) -> list[str]:
    hits = [got[f"{cache}_hits"] / max(got[f"{cache}_queries"], 1) for cache in ("prefix_cache", "mm_cache")]
    figures = ("requests_per_s", "of_base", "first_token_median_s", "first_token_p99_s")
    return [
        *(f"{got[name]:.2f}" for name in figures),
        *(f"{got['prompt_tokens_per_s']:.0f}", f"{got['busy_s']:.2f}", f"{got['encoded']:.0f}"),
        *(f"{share:.0%}" for share in hits),
        *(f"{got['phases_ms'][name]:.1f}" for name in PHASES),
        ", ".join(f"{count} {reason}" for reason, count in got["failures"].items()),
    ]


def key(variant: Variant, load: Load) -> str:
    return f"{variant.name}, {load.files}, {load.answer} tokens, {load.clients} clients"


def draw(results: dict[str, Any], servers: Sequence[Variant], loads: Sequence[Load], path: Path) -> None:
    """Requests per second by the number of clients, one line per server."""
    figure, axes = blank()
    clients = [load.clients for load in loads]
    for one, (colour, marker, dashes) in zip(servers, cycle(STYLES)):
        rates = [results[key(one, load)]["requests_per_s"] for load in loads]
        axes.plot(clients, rates, color=colour, marker=marker, linestyle=dashes, label=one.name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(clients, map(str, clients))
    axes.set(xlabel="clients", ylabel="requests per second", ylim=(0, None))
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
