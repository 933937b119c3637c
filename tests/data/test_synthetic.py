"""The synthetic set's files hold what its answers say."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from data import synthetic
from data.decode import decode
from data.formats import load
from data.frames import FramePolicy
from data.types import VideoRef

VIDEOS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic.generate(tmp_path_factory.mktemp("set"), VIDEOS, seed=5).parent


def scene(number: int, seed: int = 5) -> synthetic.Scene:
    return synthetic.plan(np.random.default_rng([seed, number]))


def test_every_video_asks_the_five_questions_in_an_order_of_its_own(folder):
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    asked = [[turn["value"].removeprefix("<video>\n") for turn in row["conversations"][::2]] for row in rows]
    assert all(sorted(questions) == sorted(synthetic.QUESTIONS.values()) for questions in asked)
    assert len({tuple(questions) for questions in asked}) > 1
    names = {question: name for name, question in synthetic.QUESTIONS.items()}
    for number, row in enumerate(rows):
        answers = scene(number).answers
        for question, turn in zip(asked[number], row["conversations"][1::2]):
            assert turn["value"] == answers[names[question]]


def test_the_rows_are_samples_with_one_video_each(folder):
    for sample in load(str(folder / "data.jsonl")):
        assert [type(part) for turn in sample.turns for part in turn.parts].count(VideoRef) == 1


@pytest.mark.parametrize("number", range(VIDEOS))
def test_colors_and_changes_survive_the_file(folder, number):
    plan = scene(number)
    clip = decode(VideoRef(str(folder / f"videos/{number:05d}.mp4")), FramePolicy(fps=synthetic.FPS))
    assert clip.frames_THWC.shape == (synthetic.FRAMES, synthetic.SIDE, synthetic.SIDE, 3)

    def seen(cell: tuple[int, int], frame: int) -> str:
        """The color nearest to the middle of a cell, the ring's being beside it."""
        y, x = np.array(cell) * synthetic.CELL + synthetic.CELL // 2
        patch = clip.frames_THWC[frame, y - 2 : y + 3, x - 2 : x + 3].mean((0, 1))
        return min(synthetic.COLORS, key=lambda name: np.abs(patch - synthetic.COLORS[name]).sum())

    for side, colors in plan.lamps.items():
        assert [seen(plan.cells[side], frame) for frame in range(synthetic.FRAMES)] == colors
        assert 1 <= sum(a != b for a, b in pairwise(colors)) <= 3
    assert seen(plan.cells["square"], 0) == seen(plan.cells["square"], -1) == plan.square
    assert seen(plan.cells["moved"], 0) == seen(plan.goal, -1) == plan.framed["moved"]
    assert seen(plan.cells["still"], 0) == seen(plan.cells["still"], -1) == plan.framed["still"]


def test_the_ring_appears_later_and_stays(folder):
    plan = scene(0)
    clip = decode(VideoRef(str(folder / "videos/00000.mp4")), FramePolicy(fps=synthetic.FPS))
    top, left = np.array(plan.cells["ring"]) * synthetic.CELL
    cell = clip.frames_THWC[:, top : top + synthetic.CELL, left : left + synthetic.CELL].astype(float)
    change = np.abs(np.diff(cell, axis=0)).mean((1, 2, 3))
    assert change.argmax() == plan.ring_from - 1
    assert change.max() > 3 * np.delete(change, change.argmax()).max()


def test_the_seed_and_the_number_alone_decide_a_video(folder, tmp_path):
    again = synthetic.generate(tmp_path / "again", 2, seed=5, workers=1).parent
    for number in range(2):
        name = f"videos/{number:05d}.mp4"
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert scene(0) != scene(0, seed=6)
