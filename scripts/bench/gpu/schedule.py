"""Run the jobs of the GPU benchmark in turn until the time is up, and continue in the next call.

Every job is a process with a time limit and leaves a JSON file, so the command can be killed at any moment and
continued by running it again. A finished job runs again only if its settings, the code or the device have changed.
Jobs that failed or were skipped are tried again after all others. `page.md` in the same folder shows the results.
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
MIN_SECONDS = 10  # no job is started with less time left


@dataclass
class Options:
    out: str  # folder for the JSON files and page.md; run with the same folder to continue
    minutes: float = number(10, above=0)  # time limit of this call
    parts: list[str] = names(list(PARTS), *PARTS)  # what to measure
    device: str = names("cuda", "cuda", "cpu")  # cpu: try the command without a GPU
    shape: str | None = None  # one of scripts/bench/models.py; null: qwen2_5_vl_7b and qwen2_5_vl_3b


@dataclass(frozen=True)
class Session:
    """The settings that all jobs of one call share."""

    folder: Path
    deadline: float  # of the monotonic clock
    machine: dict[str, Any]
    no_device: str | None  # why no job can run, in one line

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def path(self, job: Job) -> Path:
        return self.folder / f"{job.name}.json"

    def key(self, job: Job) -> list[Any]:
        """Everything that a result depends on. The folder of its data is not part of it."""
        words = [word for word in job.words if not word.startswith("folder=")]
        return [words, fingerprint(*CODE), *(self.machine[name] for name in ("device", "torch", "transformers"))]


def run(options: Options) -> None:
    """The whole benchmark."""
    deadline = time.monotonic() + 60 * options.minutes
    if options.shape is not None:
        build_shape(options.shape)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the jobs too
    gpu, folder = torch.cuda.is_available(), Path(options.out).resolve()
    with lock(folder, "out"), _stopped_by_sigterm():
        no_device = None if gpu or options.device == "cpu" else "no CUDA device: device=cpu tries the command without"
        session = Session(folder, deadline, machine(), no_device)
        planned = [job for job in jobs(options.shape, gpu, folder / "data") if job.part in options.parts]
        _run_all(session, planned)
        print(f"page: {folder / 'page.md'}")


def _run_all(session: Session, planned: list[Job]) -> None:
    records = {job: read_record(session.path(job)) for job in planned}
    done = [job for job in planned if _finished(session, job, records[job])]
    unsuccessful = [job for job in planned if records[job] and not is_done(records[job])]
    pending = sorted((job for job in planned if job not in done), key=lambda job: job in unsuccessful)
    print(f"{len(planned)} jobs, {len(done)} of them done; {_minutes(session)} min", flush=True)
    for i, job in enumerate(pending):
        missing = session.no_device or job.missing
        if session.left() < MIN_SECONDS and not missing:
            print(f"time is up: run the command again for the other {len(pending) - i} jobs", flush=True)
            break
        print(f"[{len(done) + i + 1}/{len(planned)}] {job.name} ...", flush=True)
        record = {"status": "skipped", "reason": missing} if missing else _run(session, job)
        if record is not None and not (missing and is_done(records[job])):  # keep a result of another machine
            identity = {"name": job.name, "part": job.part, "key": session.key(job), "machine": session.machine}
            write_json(session.path(job), identity | record)
        write_page(session.folder, planned)
        print(f"    {_outcome(record)}; {_minutes(session)} min left", flush=True)
    write_page(session.folder, planned)


def _finished(session: Session, job: Job, record: dict[str, Any] | None) -> bool:
    return record is not None and is_done(record) and record["key"] == session.key(job)


def _run(session: Session, job: Job) -> dict[str, Any] | None:
    """The record of a job; None if the time of this call was up before the job ended."""
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
        return {"status": "failed", "reason": f"not finished after {limit:.0f} s"}
    result = read_json(figures)
    figures.unlink(missing_ok=True)
    if status == 0 and result is not None:
        return {"status": "done", "seconds": seconds, "result": result["result"], "options": result["options"]}
    why = reason(log.read_text(errors="replace")).removeprefix("error: ")
    return {"status": "skipped" if status == 2 else "failed", "seconds": seconds, "reason": why}


def _outcome(record: dict[str, Any] | None) -> str:
    if record is None:
        return "stopped, because the time is up; the next call runs it again"
    return record["status"] + (f": {record['reason']}" if "reason" in record else f" in {record['seconds']:.0f} s")


def _minutes(session: Session) -> str:
    return f"{max(0.0, session.left()) / 60:.1f}"


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """End the running job on SIGTERM, as on Ctrl-C."""

    def stop(*_: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: run the same command to continue", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        signal.signal(signal.SIGTERM, before)
