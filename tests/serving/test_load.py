"""The benchmark of a server under load, with a real server on a tiny model."""

from __future__ import annotations

import pytest

from scripts.bench.serving.throughput import Options, serving

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
