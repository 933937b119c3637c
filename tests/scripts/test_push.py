from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, close_session, constants
from transformers import AutoModelForImageTextToText, AutoProcessor

from scripts import export
from tests.hub import Hub, hub
from tests.runs import trained
from train import cli
from train.export.hub import push

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(shared_words) -> Path:
    """A run of one step, and next to it its export, which tests push as it is or copy."""
    words = shared_words("train.steps=1")
    folder = Path(trained(*words).run_dir)
    export.main(export.Options(run=str(folder), out=str(folder.parent / "out")))
    return folder


@pytest.fixture
def out(run, tmp_path) -> Path:
    return shutil.copytree(run.parent / "out", tmp_path / "out")


@pytest.fixture
def connect(monkeypatch):
    """Make the Hub's library talk to a server of this machine, as HF_ENDPOINT does when the library is imported."""

    def to(held: Hub) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", held.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", held.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        close_session()

    for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_local")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield to
    close_session()


def same_files(held: Hub, out: Path) -> bool:
    return held.files == {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("trouble", [{}, {"cuts": 2}, {"lost_replies": 1}, {"busy": [429, 409, 408]}])
def test_a_push_is_one_commit_whatever_becomes_of_the_connection(out, connect, trouble):
    with hub(**trouble) as held:
        connect(held)
        assert push(out, "user/name", private=True, pause=0.0).startswith("http")
        assert len(held.commits) == 1 and held.private and not (held.cuts or held.busy)
        assert same_files(held, out)
        push(out, "user/name", private=False, pause=0.0)
        assert len(held.commits) == 1  # nothing new: no new commit


def test_what_was_pushed_loads_as_the_export_does(run, out, connect, capsys, tmp_path):
    with hub() as held:
        connect(held)
        export.main(export.Options(run=str(run), out=str(out), push="user/name"))
        assert "pushed: http" in capsys.readouterr().out and not held.private
        export.main(export.Options(run=str(run), out=str(out), push="user/name"))
        assert len(held.commits) == 1  # an export that is written again is the same
        theirs = AutoModelForImageTextToText.from_pretrained("user/name", cache_dir=tmp_path / "cache")
        AutoProcessor.from_pretrained("user/name", cache_dir=tmp_path / "cache")
    ours = AutoModelForImageTextToText.from_pretrained(out).state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.state_dict().items())
    ModelCard(held.files["README.md"].decode())  # raises where the metadata cannot be read


def test_stale_weights_leave_with_the_commit_that_replaces_them(out, connect):
    with hub(exists=True, files={"model-00002-of-00002.safetensors": b"old", "notes.md": b"kept"}) as held:
        connect(held)
        push(out, "user/name", private=False)
        assert "model-00002-of-00002.safetensors" not in held.files and held.files["notes.md"] == b"kept"


@pytest.mark.parametrize(
    ("state", "word", "reason"),
    [({"writable": False}, "", "hf auth login"), ({"exists": True}, "private=true", "is public")],
)
def test_a_push_that_is_refused_keeps_the_export(run, out, connect, capsys, state, word, reason):
    with hub(**state) as held, pytest.raises(SystemExit) as end:
        connect(held)
        cli.run(export.main, export.Options, [f"run={run}", f"out={out}", "push=user/name", *word.split()])
    assert end.value.code == 2 and reason in capsys.readouterr().err
    assert held.commits == [] and (out / "evs.json").is_file()
