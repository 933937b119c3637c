"""Which questions an evaluation asks: one per labelled answer, recognised by their content."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data.types import Sample, Turn, VideoRef
from train.evaluation.questions import Question, questions

SAMPLE = Sample(
    "a", (Turn("user", (VideoRef("/data/clip.mp4"), "What?")), Turn("assistant", ("a dog",))), answers=("dog",)
)


def asked(*samples: Sample) -> list[Question]:
    return [question for of_sample in questions(samples)[1].values() for question in of_sample]


def answered(text: str) -> Sample:
    return replace(SAMPLE, turns=(SAMPLE.turns[0], Turn("assistant", (text,))))


def test_the_answer_of_the_turn_and_those_of_the_row_are_accepted():
    assert asked(SAMPLE)[0].accepted == ("a dog", "dog")


@pytest.mark.parametrize(
    "other",
    [answered("a cat"), replace(SAMPLE, metric="f1"), replace(SAMPLE, answers=())],
    ids=["answer", "metric", "row"],
)
def test_a_question_that_is_graded_otherwise_has_another_key(other):
    assert asked(SAMPLE)[0].key != asked(other)[0].key


def test_a_question_has_the_same_key_in_another_folder_and_row():
    moved = Turn("user", (VideoRef("/elsewhere/clip.mp4"), "What?"))
    assert asked(SAMPLE)[0].key == asked(Sample("b", (moved, SAMPLE.turns[1]), answers=("dog",)))[0].key


def test_equal_rows_are_questions_of_their_own():
    first, second = asked(SAMPLE, SAMPLE)
    assert first.key != second.key and (first.sample, second.sample) == ("a", "a#2") and first.video == second.video
