"""The benchmark of a server under load, with a real server on a tiny model."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import suppress

import psutil
import pytest

from scripts.bench.serving.server import Variant, started
from scripts.bench.serving.throughput import Options, serving
from scripts.make_tiny_model import make

pytestmark = pytest.mark.serving


def test_every_load_is_answered_and_failures_stay_with_the_requests_that_cause_them(environment, tmp_path) -> None:
    options = Options(
        environment("0.32.0"), "tiny", [0.0, 0.75], ["plugin"], [4], answers=[2], requests=8, folder=str(tmp_path)
    )
    results = serving(options)
    assert len(results) == 6
    for name, got in results.items():
        faulty = got["load"]["files"] == "faulty"
        assert got["failures"].get("disconnected", 0) <= 2 * faulty, name
        assert got["answered"] + sum(got["failures"].values()) == 8 and got["answered"] >= (4 if faulty else 8), name
        assert not faulty or got["failures"]["status 400"] == 2
    files = {got["load"]["files"]: got for name, got in results.items() if name.startswith("plugin")}
    assert files["distinct"]["encoded"] == 8 and files["repeated"]["encoded"] == 0  # warming up has encoded that file
    assert files["repeated"]["mm_cache_hits"] == 8
    before = sorted(tmp_path.rglob("*.json"))
    assert serving(options) == results and sorted(tmp_path.rglob("*.json")) == before  # nothing is measured again


def serve(python, model, folder, pipe) -> None:
    with started(
        Variant("server", model, 0.75), python, folder, "--max-model-len 512 --enforce-eager", folder / "server.log"
    ) as server:
        server.wait(folder / "server.log", 300)
        pipe.send(server.process.pid)
        time.sleep(600)


def test_a_killed_benchmark_leaves_no_process_of_its_server(environment, tmp_path) -> None:
    model = make("qwen2_5_vl", tmp_path / "model")
    ours, theirs = multiprocessing.Pipe()
    benchmark = multiprocessing.Process(
        target=serve, args=(environment("0.32.0"), model, tmp_path, theirs), daemon=True
    )
    benchmark.start()
    assert ours.poll(300)
    server = psutil.Process(ours.recv())
    processes = [server, *server.children(recursive=True)]
    assert len(processes) > 2  # the engine and its worker
    benchmark.kill()
    _, alive = psutil.wait_procs(processes, timeout=20)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert alive == []
