"""Cost of a start before its first step: building the index of many rows about many files, and reading it again.

A JSONL file of `rows` conversations about `files` small videos is read by `ranks` processes that start together.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import psutil

from data.encoding.encoder import Encoder
from data.media.frames import FramePolicy
from data.sources.collection import ReadOptions, collect
from data.sources.index import build_index
from data.sources.spec import parse_sources
from scripts.bench.timing import table
from train.ranges import number

WORDS = "what moves here and which of these holds the red ball near a blue box while nobody looks".split()  # noqa: SIM905

# One rank's start, its imports included.
START = """
import sys, time
begin = time.perf_counter()
from scripts.bench.index import start
start(*sys.argv[1:], begin)
"""


@dataclass
class Options:
    rows: int = number(200_000, least=1)  # conversations
    files: int = number(2000, least=1)  # videos
    ranks: int = number(2, least=1)  # processes that start together
    workers: int = number(1, least=0)  # of each rank
    out: str | None = None  # JSON file for the figures


def index(options: Options) -> dict[str, Any]:
    """Seconds and memory of every rank, at the first and at the second start."""
    from scripts.make_tiny_model import make  # not imported by the ranks, whose memory is measured

    with TemporaryDirectory() as folder:
        make("qwen2_5_vl", Path(folder) / "model")
        data = write(Path(folder) / "data", options.rows, options.files)
        starts = {name: _start(Path(folder), data, options) for name in ("first", "second")}
    columns = ("seconds", "libraries_mib", "peak_mib", "own_mib", "grown_mib")
    rows = []
    for name, ranks in starts.items():
        worst = [f"{max(rank[key] for rank in ranks):.1f}" for key in columns]
        rows.append((f"{name} start", *worst, " ".join(f"{rank['worker_seconds']:.1f}" for rank in ranks)))
    print(f"{options.rows} rows, {options.files} files, {options.ranks} ranks of {options.workers} workers")
    resident = ("MiB resident: libraries", "at the peak", "not shared", "grown by the index")
    print(table(("", "seconds", *resident, "CPU seconds of each rank's workers"), rows))
    return starts


def start(model: str, data: str, workers: str, begin: float) -> None:
    """Run by each rank: print its seconds since `begin`, memory, CPU seconds of its workers, and the index's digest."""
    encoder, reading = _encoder(model), ReadOptions(workers=int(workers), progress=False)
    before, own = _resident_mib(), psutil.Process().memory_full_info().uss / 2**20
    index = build_index(collect(parse_sources("data", data), reading), encoder, reading)
    workers_usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {
        "seconds": time.perf_counter() - begin,
        "libraries_mib": before,
        "peak_mib": _resident_mib(),
        "own_mib": psutil.Process().memory_full_info().uss / 2**20,
        "grown_mib": psutil.Process().memory_full_info().uss / 2**20 - own,
        "worker_seconds": workers_usage.ru_utime + workers_usage.ru_stime,
        "samples": len(index),
        "digest": index.digest,
    }
    print(json.dumps(figures))


def _resident_mib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(folder: Path, rows: int, files: int) -> Path:
    """The path of a JSONL file of conversations of two turns about copies of a video of two seconds."""
    folder.mkdir()
    first = _video(folder / "0.mp4").read_bytes()
    for i in range(1, files):
        (folder / f"{i}.mp4").write_bytes(first)
    random = np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as file:
        for row in range(rows):
            texts = [" ".join(random.choice(WORDS, length)) for length in (40, 15)]
            turns = [{"from": "human", "value": f"<video>\n{texts[0]}?"}, {"from": "gpt", "value": texts[1]}]
            file.write(json.dumps({"id": str(row), "video": f"{row % files}.mp4", "conversations": turns}) + "\n")
    return folder / "rows.jsonl"


def _video(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 112, 112, "yuv420p"
        for frame in range(50):
            picture = np.full((112, 112, 3), 5 * frame, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def _encoder(model: str) -> Any:
    from transformers import AutoProcessor

    return Encoder(AutoProcessor.from_pretrained(model), FramePolicy())


def _start(folder: Path, data: Path, options: Options) -> list[dict[str, Any]]:
    words = [sys.executable, "-c", START, str(folder / "model"), str(data), str(options.workers)]
    ranks = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(options.ranks)]
    printed = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise ValueError("a rank failed; its error is printed above")
    figures = [json.loads(text.splitlines()[-1]) for text in printed]
    assert len({rank["digest"] for rank in figures}) == 1, "ranks built different indexes"
    return figures
