import pytest

from data.formats.openai import sample
from data.formats.roots import Folder
from data.types import ImageRef, RowError, Turn, VideoRef

ROOT = Folder("/media")
ANSWER = {"role": "assistant", "content": "A dog."}


def parts(content, **fields):
    return sample({"messages": [{"role": "user", "content": content}, ANSWER], **fields}, ROOT, "r").turns[0].parts


def test_content_parts_keep_their_order():
    content = [
        {"type": "video", "video": "a.mp4", "video_start": 2, "video_end": 3},
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "file:///b.png"}},
        {"type": "video_url", "video_url": {"url": "c.mp4"}},
    ]
    expected = (VideoRef("/media/a.mp4", 2.0, 3.0), "What?", ImageRef("/b.png"), VideoRef("/media/c.mp4"))
    assert parts(content) == expected


def test_marks_in_text_take_the_rows_lists():
    expected = (VideoRef("/media/a.mp4"), ImageRef("/media/b.png"), "What?")
    assert parts("<video><image>What?", videos=["a.mp4"], images=["b.png"]) == expected


def test_system_and_developer_set_the_scene():
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}, ANSWER]
    assert sample({"messages": messages}, ROOT, "r").turns[0] == Turn("system", ("Be brief.",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"type": "audio"}], "type 'audio'; use text"),
        (["hi"], "type None"),
        ([{"type": "video"}], "<video> mark number 1 has no video"),
        (None, "content is NoneType"),
        ("<video>", "mark number 1 has no video"),
    ],
)
def test_a_bad_message_is_named_in_one_line(content, words):
    with pytest.raises(RowError, match=f"r: .*{words}"):
        parts(content)


def test_media_in_an_answer_are_refused():
    answer = {"role": "assistant", "content": [{"type": "image", "image": "a.png"}]}
    with pytest.raises(RowError, match=r"turn 2 \(assistant\) contains media"):
        sample({"messages": [{"role": "user", "content": "Hi"}, answer]}, ROOT, "r")
