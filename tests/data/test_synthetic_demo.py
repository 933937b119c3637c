"""The demo's videos tell what their answers say, after the codec too."""

from __future__ import annotations

import numpy as np
import pytest

from data.media.decode import decode
from data.synthetic.demo import CELL, FRAMES, QUESTIONS, generate, plan, render
from data.synthetic.video import COLORS
from data.types import VideoRef
from tests.data import videos
from tests.data.reading import read


def nearest(pixels: np.ndarray) -> str:
    mean = pixels.reshape(-1, 3).mean(0)
    return min(COLORS, key=lambda name: np.abs(mean - COLORS[name]).sum())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("synthetic"), 6, seed=3, workers=1)


def test_a_video_is_a_function_of_seed_and_number(data, tmp_path):
    again = generate(tmp_path, 3, seed=3, workers=1)
    for number in range(3):
        one, other = (
            decode(VideoRef(str(path.parent / "videos" / f"{number:05d}.mp4")), videos.every).frames_THWC
            for path in (data, again)
        )
        assert np.abs(one.astype(int) - other).mean() < 1  # the encoder itself is not exact
    assert data.read_text().splitlines()[:3] == again.read_text().splitlines()


def test_every_row_asks_all_questions_in_some_order(data):
    orders = set()
    for sample in read(str(data)):
        asked = [turn.parts[-1].strip() for turn in sample.turns if turn.role == "user"]
        assert sorted(asked) == sorted(QUESTIONS.values())
        orders.add(tuple(asked))
    assert len(orders) > 1


def test_colors_survive_the_codec(data):
    for number, sample in enumerate(read(str(data))):
        scene = plan(np.random.default_rng([3, number]))
        ref = next(part for turn in sample.turns for part in turn.parts if isinstance(part, VideoRef))
        frames = decode(ref, videos.every).frames_THWC
        assert frames.shape[0] == FRAMES
        for name, down in (("square", 0), ("upper", -4), ("lower", 4)):
            row, column = (np.array(scene.cells[name]) * CELL + CELL // 2 + (down, 0)).tolist()
            assert nearest(frames[-1, row - 2 : row + 3, column - 2 : column + 3]) == scene.answers[name]


def test_only_what_the_plan_says_changes():
    scene = plan(np.random.default_rng(0))
    frames = render(scene, np.random.default_rng(1)).astype(float)
    before, after = frames[: scene.ring_from].mean(0), frames[scene.ring_from :].mean(0)
    row, column = (np.array(scene.cells["square"]) * CELL + CELL // 2).tolist()
    assert np.abs(before - after)[row - 2 : row + 3, column - 2 : column + 3].max() < 15
