"""The study of both places: it continues after a stop, and says what it found in one sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scripts.before_the_tower import CURVES, NAME, Options, claim, main, sentence
from train.reports.curve import Curve, figure


def curves(lost: float) -> list[Curve]:
    found = {file: Curve(name, {0.0: 1.0, 0.85: 0.99, 0.9: 0.5}) for file, (name, _, _) in CURVES.items()}
    found["before-before"] = Curve("", {0.0: 1.0, 0.85: 0.99 - lost, 0.9: 0.1})
    return list(found.values())


@pytest.mark.parametrize(("lost", "words"), [(0.01, "is within a point"), (0.02, "is not within a point")])
def test_before_tower_the_sentence_compares_means_up_to_the_rate(lost, words):
    said = sentence([curves(lost), curves(lost)])
    assert words in said and f"loses is {100 * lost:.1f}, at 0.85" in said


def test_before_tower_every_curve_is_known_by_its_marker():
    lines = figure(curves(0.0), "accuracy").axes[0].get_lines()
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(CURVES)


def test_before_tower_a_folder_of_another_study_is_refused(tmp_path):
    begun = Options(out=str(tmp_path / "out"))
    claim(tmp_path / "out", begun)
    claim(tmp_path / "out", replace(begun, seeds=[7], jobs=1, page="other.md"))
    with pytest.raises(ValueError, match="was begun with blocks=4: give that, remove it, or give another folder"):
        claim(tmp_path / "out", replace(begun, blocks=1))
    (tmp_path / "full" / "something").mkdir(parents=True)
    with pytest.raises(ValueError, match="was begun with blocks=None"):
        claim(tmp_path / "full", begun)


@pytest.mark.slow
def test_before_tower_a_study_goes_on_where_it_was_and_writes_its_page(tmp_path):
    page, out = tmp_path / "page.md", tmp_path / "out"
    page.write_text(f"<!-- {NAME}: begin -->\n<!-- {NAME}: end -->\n")
    small = {"train_videos": 16, "eval_videos": 2, "base_steps": 1, "steps": 1, "blocks": 1, "rates": [0, 0.75]}
    options = Options(out=str(out), seeds=[0], page=str(page), **small)
    main(options)
    (out / "seed0" / "before-before.json").unlink()
    kept = out / "seed0" / "after-checkpoint" / "model.safetensors"
    written, first = kept.stat().st_mtime_ns, page.read_text()
    main(options)
    assert kept.stat().st_mtime_ns == written
    assert page.read_text() == first and "uptrained before, pruned before" in first
    assert (tmp_path / "page.png").is_file()
