"""Run the jobs of the GPU benchmark one after another until the time is up, and go on with them in the next call.

Each job is a process of its own with its own limit, and leaves one JSON in out=DIR; page.md there shows them all. The
same command goes on: a finished job is not run again unless its settings, the code or the device have changed; one
that was killed is run again, and so is one that failed or was skipped, after the others.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from scripts.bench.gpu.jobs import PARTS, Job, jobs
from scripts.bench.gpu.page import write_page
from scripts.bench.models import build_shape
from scripts.bench.processes import reason, run_limited
from scripts.bench.records import fingerprint, is_done, read_json, read_record, write_json
from scripts.bench.timing import ROOT
from train.checkpoint.lock import lock
from train.metrics.machine import machine
from train.ranges import names, number

CODE = ("evs", "data", "train", "configs", "scripts/bench")
LEAST = 10  # seconds left under which no job is started


@dataclass
class Options:
    out: str  # folder of the JSONs and of page.md; the same folder continues
    minutes: float = number(10, above=0)  # after which no job runs any more
    parts: list[str] = names(list(PARTS), *PARTS)  # what to measure
    device: str = names("cuda", "cuda", "cpu")  # cpu: to try the command without a GPU
    shape: str | None = None  # one of scripts/bench/models.py; null: qwen2_5_vl_7b and qwen2_5_vl_3b


@dataclass(frozen=True)
class Session:
    """What the jobs of one call have in common."""

    folder: Path
    until: float  # by the monotonic clock
    machine: dict[str, Any]
    no_device: str | None  # why no job can run, in one line

    def left(self) -> float:
        return self.until - time.monotonic()

    def path(self, job: Job) -> Path:
        return self.folder / f"{job.name}.json"

    def key(self, job: Job) -> list[Any]:
        """What a result depends on; not on where its data lie."""
        words = [word for word in job.words if not word.startswith("folder=")]
        return [words, fingerprint(*CODE), *(self.machine[name] for name in ("device", "torch", "transformers"))]


def run(options: Options) -> None:
    """The whole benchmark."""
    until = time.monotonic() + 60 * options.minutes
    if options.shape is not None:
        build_shape(options.shape)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the jobs too
    gpu, folder = torch.cuda.is_available(), Path(options.out).resolve()
    with lock(folder, "out"), _stopped_by_sigterm():
        no_device = None if gpu or options.device == "cpu" else "no CUDA device: device=cpu tries the command without"
        session = Session(folder, until, machine(), no_device)
        planned = [job for job in jobs(options.shape, gpu, folder / "data") if job.part in options.parts]
        _run_all(session, planned)
        print(f"page: {folder / 'page.md'}")


def _run_all(session: Session, planned: list[Job]) -> None:
    known = {job: read_record(session.path(job)) for job in planned}
    done = [job for job in planned if _finished(session, job, known[job])]
    unsuccessful = [job for job in planned if known[job] and not is_done(known[job])]
    todo = sorted((job for job in planned if job not in done), key=lambda job: job in unsuccessful)
    print(f"{len(planned)} jobs, {len(done)} of them done; {_minutes(session)} min", flush=True)
    for place, job in enumerate(todo):
        lacking = session.no_device or job.missing
        if session.left() < LEAST and not lacking:
            print(f"time is up: {len(todo) - place} jobs remain for the next call of this command", flush=True)
            break
        print(f"[{len(done) + place + 1}/{len(planned)}] {job.name} ...", flush=True)
        record = {"status": "skipped", "reason": lacking} if lacking else _run(session, job)
        if record is not None and not (lacking and is_done(known[job])):  # a result of another machine stays
            about = {"name": job.name, "part": job.part, "key": session.key(job), "machine": session.machine}
            write_json(session.path(job), about | record)
        write_page(session.folder, planned)
        print(f"    {_outcome(record)}; {_minutes(session)} min left", flush=True)
    write_page(session.folder, planned)


def _finished(session: Session, job: Job, record: dict[str, Any] | None) -> bool:
    return record is not None and is_done(record) and record["key"] == session.key(job)


def _run(session: Session, job: Job) -> dict[str, Any] | None:
    """The record of a job; None if the time was up before it had ended."""
    folder = session.folder / "logs"
    folder.mkdir(exist_ok=True)
    figures, log, begin = folder / f"{job.name}.json", folder / f"{job.name}.txt", time.monotonic()
    figures.unlink(missing_ok=True)
    words = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *job.words, f"out={figures}"]
    limit = min(job.seconds, session.left())
    status = run_limited(words, log, limit, ROOT)
    seconds = time.monotonic() - begin
    if status is None and limit < job.seconds:
        return None
    if status is None:
        return {"status": "failed", "reason": f"had not ended after {limit:.0f} s"}
    result = read_json(figures)
    figures.unlink(missing_ok=True)
    if status == 0 and result is not None:
        return {"status": "done", "seconds": seconds, "result": result["result"], "options": result["options"]}
    why = reason(log.read_text(errors="replace")).removeprefix("error: ")
    return {"status": "skipped" if status == 2 else "failed", "seconds": seconds, "reason": why}


def _outcome(record: dict[str, Any] | None) -> str:
    if record is None:
        return "stopped: the time is up; it will run again"
    return record["status"] + (f": {record['reason']}" if "reason" in record else f" in {record['seconds']:.0f} s")


def _minutes(session: Session) -> str:
    return f"{max(0.0, session.left()) / 60:.1f}"


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the job that runs, as Ctrl-C does."""

    def stop(*_: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        signal.signal(signal.SIGTERM, before)
