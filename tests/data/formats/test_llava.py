import pytest

from data.formats.llava import sample
from data.formats.roots import Folder
from data.types import ImageRef, RowError, Sample, Turn, VideoRef

ROOT = Folder("/media")


def row(**fields):
    question = {"from": "human", "value": fields.pop("question", "<video>\nWhat moves?")}
    return {"id": 7, "conversations": [question, {"from": "gpt", "value": "A dog."}], **fields}


def parts(**fields):
    return sample(row(**fields), ROOT, "rows.jsonl:3").turns[0].parts


def test_a_row_becomes_turns_with_media_in_place():
    assert sample(row(video="a.mp4"), ROOT, "rows.jsonl:3") == Sample(
        "7", (Turn("user", (VideoRef("/media/a.mp4"), "What moves?")), Turn("assistant", ("A dog.",)))
    )


def test_several_media_are_taken_in_the_order_of_their_marks():
    assert parts(video=["a.mp4", "/x/b.mp4"], image="c.png", question="<video> or <image>? And\n<video>") == (
        VideoRef("/media/a.mp4"),
        "or",
        ImageRef("/media/c.png"),
        "? And",
        VideoRef("/x/b.mp4"),
    )


def test_an_image_mark_stands_for_a_video_where_a_row_has_videos_only():
    assert parts(video="a.mp4", question="<image>\nWhat?") == (VideoRef("/media/a.mp4"), "What?")


def test_a_segment_is_given_for_the_row_or_for_one_video():
    assert parts(video="a.mp4", video_start=1, video_end=2.5)[0] == VideoRef("/media/a.mp4", 1.0, 2.5)
    assert parts(videos=[{"video": "a.mp4", "video_end": 9}])[0] == VideoRef("/media/a.mp4", None, 9.0)


def test_text_that_only_mentions_a_mark_in_an_answer_is_text():
    turns = [{"from": "human", "value": "Name a tag."}, {"from": "gpt", "value": "<video>"}]
    assert sample({"conversations": turns}, ROOT, "r").turns[1].parts == ("<video>",)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "<video> mark number 1 has no video"),
        ({"video": ["a.mp4", "b.mp4"]}, r"2 video\(s\) but has 1 <video> mark"),
        ({"video": "a.mp4", "image": "b.png"}, r"1 image\(s\) but has 0"),
        ({"video": 3}, "video is 3; give the path"),
        ({"video": "https://x/a.mp4"}, "not a local file; fetch it"),
        ({"video": "a.mp4", "video_start": "0:01"}, "video_start='0:01'; give seconds"),
        ({"conversations": "hi"}, '"conversations" is str'),
        ({"conversations": [{"from": "bot", "value": "hi"}]}, "unknown role 'bot'; use one of human"),
        ({"conversations": [{"from": "human", "value": "hi"}]}, "no assistant turn"),
        ({"conversations": [{"from": "human", "value": None}]}, "value is NoneType"),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": " "}]}, "turn 2 .* is empty"),
        (
            {"conversations": [{"from": "gpt", "value": "hi"}, {"from": "system", "value": "be brief"}]},
            "the system turn is number 2; put it first",
        ),
    ],
)
def test_a_bad_row_is_named_in_one_line(fields, words):
    with pytest.raises(RowError, match=rf"rows\.jsonl:3: .*{words}") as error:
        sample(row(**fields), ROOT, "rows.jsonl:3")
    assert "\n" not in str(error.value)
