from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import show_pruning
from scripts.pruning.drawing import greyed
from scripts.pruning.keep_masks import cells, pixel_scores


def test_dropped_tokens_lose_their_colour_and_kept_ones_nothing():
    frame = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    keep = np.array([[True, False, False], [False, False, True]])
    shown = greyed(frame, keep)
    assert np.array_equal(shown[:30, :30], frame[:30, :30]) and np.array_equal(shown[30:, 60:], frame[30:, 60:])
    assert (np.ptp(shown[:30, 30:].astype(int), axis=-1) == 0).all()


def test_pixels_that_change_score_above_those_that_stand_still():
    frames = np.zeros((6, 56, 112, 3), np.uint8)
    frames[4:, 28:, 56:84] = 200
    grid, seen = cells(frames)
    scores = pixel_scores(seen)
    assert (grid.T, scores.shape) == (3, (3, grid.H, grid.W))
    assert (scores[0] > scores[1:].max()).all() and torch.equal(scores[1], torch.zeros_like(scores[1]))
    assert scores[2, -1, 3 * grid.W // 5] > 0 and scores[2, 0, 0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", [None, "qwen2_5_vl"])
def test_every_rate_is_a_picture_and_all_together_an_animation(clips, checkpoint, tmp_path, family):
    model = None if family is None else str(checkpoint(family))
    show_pruning.main(show_pruning.Options(video=str(clips[0]), model=model, rates=[0.5, 0.75], out=str(tmp_path)))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".gif", ".png", ".png"]
    for path in tmp_path.glob("*.png"):
        assert min(Image.open(path).size) > 200
    assert Image.open(next(tmp_path.glob("*.gif"))).n_frames > 1


@pytest.mark.slow
def test_the_area_of_the_score_is_printed_by_depth_and_dtype(clips, checkpoint, capsys):
    model = str(checkpoint("qwen3_vl"))
    show_pruning.main(show_pruning.Options(video=str(clips[0]), model=model, score=True))
    header, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert header == "| blocks of the tower | float32 | bfloat16 |"
    assert [row.split("|")[1].strip() for row in rows] == [f"{i} of 4" for i in (1, 2, 3, 4)]
    assert all(0 < float(area) < 1 for row in rows for area in row.split("|")[2:4])


def test_the_area_of_the_score_needs_a_model(clips):
    with pytest.raises(ValueError, match="give model="):
        show_pruning.main(show_pruning.Options(video=str(clips[0]), score=True))


def test_frames_are_chosen_by_the_model_or_by_options_but_not_by_both(tmp_path):
    (video := tmp_path / "a.mp4").touch()
    with pytest.raises(ValueError, match=r"fps=3\.0 has no effect with a model"):
        show_pruning.main(show_pruning.Options(str(video), model="checkpoint", fps=3.0))
