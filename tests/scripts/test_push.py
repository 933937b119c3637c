from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.hub import Hub, hub
from tests.runs import ROOT, trained

pytestmark = pytest.mark.slow
LOAD = """\
import sys, torch
from transformers import AutoModelForImageTextToText as Model, AutoProcessor
theirs, ours = Model.from_pretrained("user/name"), Model.from_pretrained(sys.argv[1])
assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())
AutoProcessor.from_pretrained("user/name")
"""


@pytest.fixture
def run(words, questions, tmp_path) -> Path:
    trained(*words("train.steps=1", f"data.eval={questions}", "eval.limit=1"))
    return tmp_path / "run"


def python(url: str, *words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    away = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_local", "NO_PROXY": "127.0.0.1"}
    environment = {**os.environ, **away, "HF_ENDPOINT": url, "PYTHONPATH": str(ROOT), **more}
    return subprocess.run([sys.executable, *map(str, words)], env=environment, capture_output=True, text=True)


def export(run: Path, url: str, *words: str) -> subprocess.CompletedProcess[str]:
    return python(url, "scripts/export.py", f"run={run}", f"out={run.parent / 'out'}", "push=user/name", *words)


def same_files(held: Hub, out: Path) -> bool:
    return held.files == {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_push_is_one_commit_whatever_becomes_of_the_connection(run, tmp_path):
    for trouble in ({}, {"cuts": 2}, {"lost_replies": 1}):
        with hub(**trouble) as held:
            done = export(run, held.url, "private=true")
            assert done.returncode == 0 and "pushed: http" in done.stdout, done.stderr
            assert len(held.commits) == 1 and held.private and held.cuts == 0
            assert same_files(held, tmp_path / "out")
            assert export(run, held.url).returncode == 0 and len(held.commits) == 1  # nothing new: no new commit


def test_what_was_pushed_loads_as_the_export_does(run, tmp_path):
    with hub() as held:
        assert export(run, held.url).returncode == 0
        cached = {"HF_HOME": str(tmp_path / "cache")}
        loaded = python(held.url, "-c", LOAD, tmp_path / "out", **cached)
    assert loaded.returncode == 0, loaded.stderr
    ModelCard(held.files["README.md"].decode())  # raises where the metadata cannot be read


def test_stale_weights_leave_with_the_commit_that_replaces_them(run):
    with hub(exists=True, files={"model-00002-of-00002.safetensors": b"old", "notes.md": b"kept"}) as held:
        assert export(run, held.url).returncode == 0
        assert "model-00002-of-00002.safetensors" not in held.files and held.files["notes.md"] == b"kept"


@pytest.mark.parametrize(
    ("state", "word", "reason"),
    [({"writable": False}, "", "hf auth login"), ({"exists": True}, "private=true", "is public")],
)
def test_a_push_that_is_refused_keeps_the_export(run, tmp_path, state, word, reason):
    with hub(**state) as held:
        done = export(run, held.url, *word.split())
    assert done.returncode == 2 and reason in done.stderr and "Traceback" not in done.stderr
    assert held.commits == [] and (tmp_path / "out" / "evs.json").is_file()
