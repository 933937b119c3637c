"""What a start costs before its first step: the index of many rows over many files, made, and read again.

rows= conversations about files= small videos, in one JSONL file, by ranks= processes that start together; beside it,
one row at a time in one process.
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
from data.encoding.size_prediction import predict_size
from data.media.container import probe
from data.media.frames import FramePolicy
from data.sources.collection import ReadOptions, collect
from data.sources.index import build_index
from data.sources.spec import parse_sources
from scripts.bench.timing import table
from train.ranges import number

ALONE = 200  # rows that are also looked at one by one, for comparison
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
    rows: int = number(200_000, least=1)
    files: int = number(2000, least=1)
    ranks: int = number(2, least=1)
    workers: int = number(1, least=0)  # of each rank
    out: str | None = None  # JSON


def index(options: Options) -> dict[str, Any]:
    """Seconds and memory of a first and a second start, beside one row at a time."""

    from scripts.make_tiny_model import make  # models, which no rank of a start needs

    with TemporaryDirectory() as folder:
        make("qwen2_5_vl", Path(folder) / "model")
        data = write(Path(folder) / "data", options.rows, options.files)
        alone = _alone(Path(folder) / "model", data, options)
        starts = {name: _start(Path(folder), data, options) for name in ("first", "second")}
    columns = ("seconds", "libraries_mib", "peak_mib", "own_mib", "grown_mib")
    rows = [("one row at a time", f"{alone:.1f}", *[""] * len(columns))]
    for name, ranks in starts.items():
        worst = [f"{max(rank[key] for rank in ranks):.1f}" for key in columns]
        rows.append((f"{name} start", *worst, " ".join(f"{rank['worker_seconds']:.1f}" for rank in ranks)))
    print(f"{options.rows} rows, {options.files} files, {options.ranks} ranks of {options.workers} workers")
    resident = ("MiB resident: libraries", "at the peak", "not shared", "grown by the index")
    print(table(("", "seconds", *resident, "CPU seconds of each rank's workers"), rows))
    return {"alone_seconds": alone, **starts}


def start(model: str, data: str, workers: str, begin: float) -> None:
    """One rank's part: prints its seconds since `begin`, its memory, its workers' time, and what it found."""
    encoder, reading = _encoder(model), ReadOptions(workers=int(workers), progress=False)
    before, own = _resident_mib(), psutil.Process().memory_full_info().uss / 2**20
    index = build_index(collect(parse_sources("data", data), reading), encoder, reading)
    of_workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {
        "seconds": time.perf_counter() - begin,
        "libraries_mib": before,
        "peak_mib": _resident_mib(),
        "own_mib": psutil.Process().memory_full_info().uss / 2**20,
        "grown_mib": psutil.Process().memory_full_info().uss / 2**20 - own,
        "worker_seconds": of_workers.ru_utime + of_workers.ru_stime,
        "samples": len(index),
        "digest": index.digest,
    }
    print(json.dumps(found))


def _resident_mib() -> float:
    """At its peak so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(folder: Path, rows: int, files: int) -> Path:
    """The data: videos of a second, and conversations of two turns about them."""
    folder.mkdir()
    first = _video(folder / "0.mp4").read_bytes()
    for each in range(1, files):
        (folder / f"{each}.mp4").write_bytes(first)
    random = np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as file:
        for each in range(rows):
            texts = [" ".join(random.choice(WORDS, length)) for length in (40, 15)]
            turns = [{"from": "human", "value": f"<video>\n{texts[0]}?"}, {"from": "gpt", "value": texts[1]}]
            file.write(json.dumps({"id": str(each), "video": f"{each % files}.mp4", "conversations": turns}) + "\n")
    return folder / "rows.jsonl"


def _video(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 112, 112, "yuv420p"
        for each in range(50):
            picture = np.full((112, 112, 3), 5 * each, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def _alone(model: Path, data: Path, options: Options) -> float:
    """Seconds that all rows would take one at a time in this process, from `ALONE` of them and as many headers."""

    encoder = _encoder(str(model))
    samples = collect(parse_sources("data", str(data)), ReadOptions(progress=False)).samples
    some = range(min(ALONE, options.rows))
    begin = time.perf_counter()
    refs = list(dict.fromkeys(ref for place in some for ref in samples[place].media))
    headers = {ref: probe(ref) for ref in refs}
    middle = time.perf_counter()
    for place in some:
        predict_size(encoder, samples[place], headers)
    end = time.perf_counter()
    return (middle - begin) / len(refs) * options.files + (end - middle) / len(some) * options.rows


def _encoder(model: str) -> Any:
    from transformers import AutoProcessor

    return Encoder(AutoProcessor.from_pretrained(model), FramePolicy())


def _start(folder: Path, data: Path, options: Options) -> list[dict[str, Any]]:
    words = [sys.executable, "-c", START, str(folder / "model"), str(data), str(options.workers)]
    ranks = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(options.ranks)]
    printed = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise ValueError("a rank failed; its error stands above")
    found = [json.loads(text.splitlines()[-1]) for text in printed]
    assert len({rank["digest"] for rank in found}) == 1, "ranks made different indexes"
    return found
