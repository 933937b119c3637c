"""Rows whose columns have other names are read as if they had ours."""

from __future__ import annotations

import json

import pytest

from data.formats.columns import Columns
from data.types import ImageRef, RowError, VideoRef
from tests.data import reading

DIALOG = {
    "key": "7",
    "clip": ["a.mp4"],
    "pictures": ["b.png"],
    "dialog": [{"who": "human", "says": "<video>\nAnd <image>?"}, {"who": "bot", "says": "A dog."}],
}
NAMES = {"messages": "dialog", "videos": "clip", "images": "pictures", "id": "key"}
TAGS = {"role": "who", "content": "says", "user": "human", "assistant": "bot"}


def read(tmp_path, row, **names):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return reading.read(str(tmp_path / "rows.jsonl"), columns=Columns(**names))[0]


def test_turns_and_media_are_found_under_other_names(tmp_path):
    sample = read(tmp_path, DIALOG, **NAMES, **TAGS)
    video, image = VideoRef(str(tmp_path / "a.mp4")), ImageRef(str(tmp_path / "b.png"))
    assert sample.id == "7" and [turn.role for turn in sample.turns] == ["user", "assistant"]
    assert sample.turns[0].parts == (video, "And", image, "?") and sample.turns[1].parts == ("A dog.",)


def test_one_question_and_one_answer_make_a_conversation(tmp_path):
    row = {"question": "<video>What?", "answer": "A dog.", "video": "a.mp4", "prompt": "Be brief."}
    sample = read(tmp_path, row, query="question", response="answer", videos="video", system="prompt")
    assert [(turn.role, turn.parts[-1]) for turn in sample.turns] == [
        ("system", "Be brief."),
        ("user", "What?"),
        ("assistant", "A dog."),
    ]


def test_a_missing_column_is_named_with_what_is_there(tmp_path):
    with pytest.raises(
        RowError, match=r"rows.jsonl:1: has no column 'film', which data.columns.videos names; it has \["
    ):
        read(tmp_path, DIALOG, **{**NAMES, "videos": "film"}, **TAGS)


def test_a_row_without_media_needs_no_column_for_them(tmp_path):
    row = {"dialog": [{"who": "human", "says": "Hello?"}, {"who": "bot", "says": "Hello."}]}
    assert read(tmp_path, row, **NAMES, **TAGS).media == ()


def test_an_unknown_role_is_refused(tmp_path):
    with pytest.raises(RowError, match=r"unknown role 'human'; data.columns names user, assistant, system"):
        read(tmp_path, DIALOG, **NAMES, role="who", content="says")


@pytest.mark.parametrize("names", [["videos"], ["query"], ["messages", "query", "response"]])
def test_columns_must_name_where_the_conversation_is(names):
    with pytest.raises(ValueError, match=r"names .*: give messages, or query and response"):
        Columns(**dict.fromkeys(names, "x")).check()
