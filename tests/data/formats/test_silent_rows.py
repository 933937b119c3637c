"""Keys that other trainers give a meaning are honoured, or the row is refused by the key's name."""

from __future__ import annotations

import re

import pytest

from data.formats.columns import Columns
from data.formats.keys import NEGATED, ROW, TURN, WEIGHTS
from data.formats.roots import Folder
from data.formats.rows import Format
from data.types import ImageRef, RowError, Turn, VideoRef

A, B = VideoRef("/media/a.mp4"), VideoRef("/media/b.mp4")
NOTHING = [None, "", " ", [], {}, {"a": None, "b": []}]
LAYOUTS = ["openai", "llava", "columns"]
OWN = ("role", "content", "from", "value")


def turns(row, columns=None):
    return Format("auto", columns or Columns()).sample(row, Folder("/media"), "rows:1").turns


def row(layout, *, answer=None, question=None, **fields):
    """A row of one question and two answers; `question` and `answer` are keys of the first two turns."""
    said = [
        ("user", "<video>Q", question),
        ("assistant", "BAD", answer),
        ("user", "Q2", None),
        ("assistant", "GOOD", None),
    ]
    if layout == "openai":
        return fields | {
            "videos": ["a.mp4"],
            "messages": [{"role": role, "content": text, **(keys or {})} for role, text, keys in said],
        }
    names = {"user": "human", "assistant": "gpt"}
    keys = {"llava": ("conversations", "from", "value"), "columns": ("dialog", "who", "says")}
    conversation, role_key, text_key = keys[layout]
    return fields | {
        "video": "a.mp4",
        conversation: [{role_key: names[role], text_key: text, **(more or {})} for role, text, more in said],
    }


def read(layout, **fields):
    names = Columns(messages="dialog", role="who", content="says", user="human", assistant="gpt", videos="video")
    return turns(row(layout, **fields), names if layout == "columns" else None)


def refused(words, layout="openai", **fields):
    with pytest.raises(RowError, match=f"rows:1.*{words}") as error:
        read(layout, **fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("key", WEIGHTS)
@pytest.mark.parametrize("value", [0, 0.0, False])
def test_a_turn_of_no_weight_is_not_learned(layout, key, value):
    assert [turn.learned for turn in read(layout, answer={key: value})] == [True, False, True, True]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("key", [*WEIGHTS, "Loss-Mask", "lossWeight"])
@pytest.mark.parametrize("value", [1, 1.0, True, None, "", []])
def test_a_turn_of_full_weight_is_learned(layout, key, value):
    assert all(turn.learned for turn in read(layout, answer={key: value}))


@pytest.mark.parametrize("key", NEGATED)
def test_a_masked_turn_is_not_learned(key):
    assert [read("openai", answer={key: flag})[1].learned for flag in (True, False)] == [False, True]


@pytest.mark.parametrize("value", [0.5, 2, -1, float("nan"), "0", [0, 1], {"a": 1}])
def test_a_weight_that_is_no_flag_is_refused(value):
    refused('turn 2: "weight" is .*only 0 and 1', answer={"weight": value})


@pytest.mark.parametrize(
    "key",
    ["loss_multiplier", "token_weights", "train_detail", "is_masked", "mask", "skip", "is_target", "requiresGrad"],
)
@pytest.mark.parametrize("value", [False, True, 0, [1, 0]])
def test_a_key_that_is_named_like_a_weight_is_refused(key, value):
    refused(f'turn 2: "{key}" is not supported; give 0 or 1 as "weight"', answer={key: value})


def test_weights_that_contradict_each_other_are_refused():
    refused("weight and loss contradict", answer={"weight": 0, "loss": True})


def test_only_assistant_turns_can_be_learned():
    refused('turn 1: "train" is True, but only assistant turns', question={"train": True})
    assert read("openai", question={"weight": 1})[0] == Turn("user", (A, "Q"))
    assert read("openai", question={"train": False})[0] == Turn("user", (A, "Q"))


def test_a_row_without_a_learned_turn_is_refused():
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "weight": 0}]
    with pytest.raises(RowError, match="no assistant turn is learned"):
        turns({"messages": messages})
    refused('"weight" is 0, so nothing is learned', weight=0)
    refused('"sample_weight" is not supported', sample_weight=0.5)
    refused('"mask_history" is not supported', mask_history=True)
    refused('"train_on_inputs" is not supported', train_on_inputs=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("key", [key for keys in TURN.values() for key in keys if key not in OWN])
def test_a_turn_with_a_key_that_would_be_ignored_is_refused(layout, key):
    for value in (["x"], "x", {"x": 1}):
        refused(f'turn 2: "{key}" is not supported; .', layout, answer={key: value})
    for value in NOTHING:
        assert read(layout, answer={key: value})[1] == Turn("assistant", ("BAD",))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("key", [key for keys in ROW.values() for key in keys])
def test_a_row_with_a_key_that_would_be_ignored_is_refused(layout, key):
    for value in (["x"], "x", {"x": 1}):
        refused(f'"{key}" is not supported; .', layout, **{key: value})
    for value in NOTHING:
        assert len(read(layout, **{key: value})) == 4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("segment", "video_start"),
        ("Video_Start_Time", "video_start"),
        ("startFrame", "video_start"),
        ("clip_range", "video_start"),
        ("videos_kwargs", "settings themselves"),
        ("mmProcessorKwargs", "settings themselves"),
        ("image_1", "videos"),
        ("num-frames", "nframes"),
        ("chosen_images", "preference"),
    ],
)
def test_a_key_that_is_named_like_one_of_a_meaning_is_refused(layout, key, words):
    for value in ([1, 2], 1, "x"):
        refused(f'"{key}" is not supported; .*{words}', layout, **{key: value})
        refused(f'"{key}" is not supported; .*{words}', layout, answer={key: value})
    assert len(read(layout, **dict.fromkeys([key], None))) == 4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "key", ["FPS", "nFrames", "max-frames", "MaxPixels", "Video", "Images", "Metric", "videoStart"]
)
def test_a_key_in_another_spelling_is_refused(layout, key):
    refused(f'"{key}" is not read; write it "', layout, **{key: "x"})
    assert len(read(layout, **{key: ""})) == 4


def test_other_keys_stay_metadata():
    metadata = {"source": "x", "duration": 3.5, "n_words": 7, "lang": "en", "split": "train", "segmentation": "x"}
    assert len(read("llava", **metadata)) == 4 and len(read("llava", answer=metadata | {"score": 0.1})) == 4


def test_a_turn_of_two_texts_is_refused():
    refused('"value" is not supported; a turn has one', answer={"value": "WORSE"})
    refused('"content" is not supported; a turn has one', "llava", answer={"content": "WORSE"})


def test_a_column_beside_the_one_that_is_mapped_is_refused():
    names = Columns(query="question", response="answer", system="rule")
    with pytest.raises(RowError, match=r"has 'system' and 'rule', which data\.columns\.system names"):
        turns({"question": "Q", "answer": "A", "rule": "RULE", "system": "ANOTHER"}, names)


@pytest.mark.parametrize("key", ["videos", "images", "kind", "metric", "answers"])
def test_a_key_beside_the_column_that_is_mapped_to_it_is_refused(key):
    names = Columns(query="question", response="answer", **{key: "mine"})
    with pytest.raises(RowError, match=f"has '{key}' and 'mine', which data.columns.{key} names"):
        turns({"question": "Q", "answer": "A", "mine": "x", key: "y"}, names)


def test_a_turn_with_a_second_text_beside_mapped_ones_is_refused():
    said = [{"who": "user", "says": "Q"}, {"who": "assistant", "says": "A", "content": "OTHER"}]
    with pytest.raises(RowError, match=r"a turn has 'content', which data\.columns\.content does not name"):
        turns({"dialog": said}, Columns(messages="dialog", role="who", content="says"))


@pytest.mark.parametrize("key", ["label", "kto_tag"])
def test_a_label_of_false_is_refused(key):
    refused(f'"{key}" is not supported', **{key: False})


@pytest.mark.parametrize("key", ["prompt", "query", "instruction", "input", "output", "response", "completion"])
def test_a_second_conversation_in_a_row_is_refused(key):
    refused(f'"{key}" is not part of the conversation', **{key: "More."})
    assert len(read("openai", **{key: "GOOD"})) == 4  # a copy of a turn


def test_metadata_of_a_part_changes_nothing():
    metadata = {"id": 3, "mime_type": "video/mp4", "width": 64, "detail": "low", "image": None, "text": "", "fps": None}
    assert parts({"type": "video", "video": "a.mp4", **metadata}, TEXT) == (A, "Q")


def test_two_conversations_are_refused():
    with pytest.raises(RowError, match="both conversations and messages"):
        turns(row("openai") | row("llava"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("key", ["system", "system_prompt", "system_message"])
def test_the_system_prompt_of_a_row_is_its_first_turn(layout, key):
    found = read(layout, **{key: "RULE <image>"})
    assert len(found) == 5 and found[0] == Turn("system", ("RULE <image>",))


def test_two_system_prompts_are_refused():
    refused("system and system_prompt differ", system="A", system_prompt="B")
    refused('"system" is list', system=["A"])
    said = [{"role": "system", "content": "A"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    with pytest.raises(RowError, match="both a system prompt and a different system turn"):
        turns({"messages": said, "system": "B"})
    assert len(turns({"messages": said, "system": "A"})) == 3


@pytest.mark.parametrize("mark", ["<image>", "<video>"])
def test_marks_in_answers_and_system_turns_stay_text(mark):
    said = [
        {"from": "system", "value": f"Never write {mark}."},
        {"from": "human", "value": "<image>\nQ"},
        {"from": "gpt", "value": f"the {mark} tag"},
    ]
    system, user, answer = turns({"video": "a.mp4", "conversations": said})
    assert (system.parts, user.parts, answer.parts) == ((f"Never write {mark}.",), (A, "Q"), (f"the {mark} tag",))


def parts(*content, **fields):
    messages = [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "A"}]
    return turns({"messages": messages, **fields})[0].parts


TEXT = {"type": "text", "text": "Q"}


def test_parts_without_a_file_take_the_rows_media_in_order():
    lists = {"videos": ["a.mp4", {"video": "b.mp4", "video_start": 1}], "images": ["i.png"]}
    placeholders = [{"type": "video"}, {"type": "image", "image": None}, {"type": "video", "video": "", "video_end": 2}]
    found = parts(*placeholders, TEXT, **lists)
    assert found == (A, ImageRef("/media/i.png"), VideoRef("/media/b.mp4", 1.0, 2.0), "Q")
    for count, words in ((1, "lists 2 video"), (3, "mark number 3 has no video")):
        with pytest.raises(RowError, match=words):
            parts(*[{"type": "video"}] * count, TEXT, videos=["a.mp4", "b.mp4"])


@pytest.mark.parametrize("kind", ["video", "image"])
@pytest.mark.parametrize("key", ["path", "url", "kind", "kind_url", "nested"])
def test_a_part_names_its_file_by_any_of_these_keys(kind, key):
    part = {"type": kind, key.replace("kind", kind): "x"} if key != "nested" else {"type": kind, kind: {"path": "x"}}
    (ref, _) = parts(part, TEXT)
    assert ref == (VideoRef if kind == "video" else ImageRef)("/media/x")


def test_a_part_holds_its_medium_as_bytes():
    for part in ({"bytes": b"x"}, {"image": {"bytes": b"x", "path": None}}, {"image": b"x"}):
        (ref, _) = parts({"type": "image", **part}, TEXT)
        assert ref.content == b"x" and ref.path.startswith("image#")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image", "path": "a.png", "url": "b.png"}, "image has the names"),
        ({"type": "video", "video": "a.mp4", "text": "Q"}, 'part of type video has "text" too'),
        ({"type": "text", "text": "Q", "image_url": {"url": "a.png"}}, 'part of type text has "image_url" too'),
        ({"type": "image", "bytes": "iVBORw0KGgo="}, "bytes of image are str"),
        ({"type": "video", "video": "A" * 5000}, "text of 5000 characters"),
        ({"type": "text", "text": "Q", "weight": 0}, '"weight" of a part is 0'),
        ({"type": "video", "video": "a.mp4", "start": 1}, '"start" is not supported; use "video_start"'),
        ({"type": "video", "video": {"path": "a.mp4", "loss_weight": 0}}, '"loss_weight" of a part is 0'),
        ({"type": "text", "text": "Q", "tool_calls": [1]}, '"tool_calls" is not supported'),
        ({"type": "text", "text": "Q", "fps": 1}, '"fps" of a part is unknown; remove it'),
        ({"type": "image", "image": "a.png", "fps": 1}, '"fps" of a part is unknown; remove it'),
        ({"type": "video", "video": "a.mp4", "FPS": 1}, '"FPS" of a part is unknown; write it "fps"'),
        ({"type": "video", "video": {"path": "a.mp4", "maxFrames": 8}}, '"maxFrames" .*; write it "max_frames"'),
        ({"type": "video", "video": "a.mp4", "stride": 4}, '"stride" of a part is unknown; remove it'),
        ({"type": "video", "video": "a.mp4", "do_resize": False}, '"do_resize" of a part is unknown; remove it'),
        ({"type": "video", "video": "a.mp4", "do_sample_frames": False}, '"do_sample_frames" is not supported'),
        ({"type": "video", "video": "a.mp4", "media_io_kwargs": {"video": {"fps": 1}}}, "settings themselves"),
    ],
)
def test_a_part_that_would_be_read_in_part_is_refused(part, words):
    with pytest.raises(RowError, match=f"rows:1.*{words}"):
        parts(part, TEXT)


@pytest.mark.parametrize(
    "url", ["http://x/a.mp4", "HTTPS://x/a.mp4", "s3://x/a", "oss://x/a", "data:video/mp4;base64,AA"]
)
def test_media_elsewhere_are_refused(url):
    with pytest.raises(RowError, match=f"{re.escape(url[:20])}.*is not a local file; fetch it first"):
        parts({"type": "video", "video": url}, TEXT)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("file:///x/with%20space.mp4", "/x/with space.mp4"),
        ("FILE://localhost/x/%C3%A9.mp4", "/x/é.mp4"),
        ("file:/x/a.mp4", "/x/a.mp4"),
        ("file://a.mp4", "/media/a.mp4"),
        ("with%20space.mp4", "/media/with%20space.mp4"),
        ("~/a.mp4", "/home/somebody/a.mp4"),
        ("~nobody-of-this-name.mp4", "/media/~nobody-of-this-name.mp4"),
    ],
)
def test_names_of_files_are_read_as_urls_and_shells_do(name, path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert parts({"type": "video", "video": name}, TEXT)[0] == VideoRef(path)


def test_empty_names_are_no_media_and_a_null_id_is_no_name():
    said = [{"from": "human", "value": "<video>Q"}, {"from": "gpt", "value": "A"}]
    given = {"id": None, "image": "", "images": ["", None], "video": "a.mp4", "conversations": said}
    sample = Format().sample(given, Folder("/media"), "rows:1")
    assert sample.media == (A,) and sample.id == "rows:1"
    assert Format().sample(given | {"id": 0}, Folder("/media"), "rows:1").id == "0"


def test_prompts_and_completions_are_read_as_trl_does():
    plain = {"prompt": "<video>Q", "completion": "A", "videos": ["a.mp4"]}
    assert turns(plain) == (Turn("user", (A, "Q")), Turn("assistant", ("A",)))
    asked = [{"role": "user", "content": [{"type": "video"}, TEXT]}, {"role": "assistant", "content": "B"}]
    more = [{"role": "user", "content": "Q2"}]
    found = turns({"prompt": asked + more, "completion": [{"role": "assistant", "content": "A"}], "videos": ["a.mp4"]})
    assert [turn.is_target for turn in found] == [False, False, False, True] and found[0].parts == (A, "Q")


@pytest.mark.parametrize(
    ("question", "answer"), [("instruction", "output"), ("query", "response"), ("query", "output")]
)
def test_instructions_are_read_as_alpaca_does(question, answer):
    given = {question: "<video>Q", "input": "More.", answer: "A", "history": [["<video>H", "I"]], "system": "RULE"}
    assert [(turn.role, turn.parts) for turn in turns(given | {"videos": ["a.mp4", "b.mp4"]})] == [
        ("system", ("RULE",)),
        ("user", (A, "H")),
        ("assistant", ("I",)),
        ("user", (B, "Q\nMore.")),
        ("assistant", ("A",)),
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"query": "Q2"}, "has both instruction and query"),
        ({"response": "A2"}, "has both output and response"),
        ({"history": ["H", "I"]}, "history is "),
        ({"history": [["H", None]]}, "an answer of history is NoneType"),
        ({"history": "[['H', 'I']]"}, "history is "),
        ({"prompt": "P"}, '"prompt" is not part'),
        ({"rejected_response": "B"}, '"rejected_response" is not supported'),
    ],
)
def test_an_ambiguous_instruction_is_refused(fields, words):
    with pytest.raises(RowError, match=f"rows:1: {words}"):
        turns({"instruction": "Q", "output": "A", **fields})


def test_input_and_history_stand_beside_mapped_columns_too():
    given = {"question": "Q", "answer": "A", "input": "More.", "history": [["H", "I"]], "system": "RULE"}
    found = turns(given, Columns(query="question", response="answer"))
    assert [turn.parts for turn in found] == [("RULE",), ("H",), ("I",), ("Q\nMore.",), ("A",)]


def test_video_r1_rows_are_read():
    given = {
        "problem_id": 2,
        "problem": "Which?",
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": ["A. dog", "B. cat"],
        "process": "<think>hm</think>",
        "solution": "<answer>A</answer>",
        "path": "a.mp4",
    }
    user, answer = turns(given)
    assert user.parts == (A, "Which?\nOptions:\nA. dog\nB. cat")
    assert answer.parts == ("<think>hm</think>\n<answer>A</answer>",)
    assert turns(given | {"data_type": "image", "options": []})[0].parts == (ImageRef("/media/a.mp4"), "Which?")
    with pytest.raises(RowError, match="names a video under path and in a list"):
        turns(given | {"videos": ["b.mp4"]})
    with pytest.raises(RowError, match="data_type is 'audio'"):
        turns(given | {"data_type": "audio"})


def test_video_chat2_rows_are_read():
    pairs = [{"i": "RULE", "q": "", "a": "A"}, {"i": "", "q": "Q2", "a": "A2", "weight": 0}]
    assert turns({"video": "a.mp4", "QA": pairs, "start": 1, "end": 2}) == (
        Turn("system", ("RULE",)),
        Turn("user", (VideoRef("/media/a.mp4", 1.0, 2.0),)),
        Turn("assistant", ("A",)),
        Turn("user", ("Q2",)),
        Turn("assistant", ("A2",), learned=False),
    )
    with pytest.raises(RowError, match="2 instructions"):
        turns({"video": "a.mp4", "QA": [{"i": "X", "q": "", "a": "A"}, {"i": "Y", "q": "Q", "a": "A"}]})
