"""Answers on disk survive a kill, and are never taken for another evaluation's."""

from __future__ import annotations

import pytest
from accelerate import Accelerator

from train.evaluation.answers import Answer, Answers, read

ONE, TWO = (Answer(name, 0.1 + 0.2, "s", 0.5, "f1", "text\n", 1.0, 2, 5, 10) for name in ("one", "two"))


@pytest.fixture
def log(tmp_path) -> Answers:
    return Answers(Accelerator(cpu=True), tmp_path / "new" / "a.jsonl", {"weights": "x"})


def test_whole_lines_are_found_again_and_a_cut_one_is_not(log):
    assert log.begin() == []
    log.append([ONE])
    with log.path.open("a") as file:
        file.write('{"question": "tw')
    assert log.begin() == [ONE]
    log.append([TWO])
    assert log.begin() == [ONE, TWO] == read(log.path)


def test_what_other_ranks_had_written_is_taken_in(log):
    log.begin()
    beside = log.path.with_name(f"{log.path.name}.rank1")
    log.append([ONE])
    log.path.rename(beside)
    assert log.begin() == [ONE] == read(log.path) and not beside.exists()


def test_answers_of_other_weights_are_refused(log):
    log.begin()
    other = Answers(log.engine, log.path, {"weights": "y"})
    with pytest.raises(ValueError, match="weights was x, is y"):
        other.begin()
