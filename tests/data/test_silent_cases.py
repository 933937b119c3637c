"""Rows that other trainers read, from the file to the labels: what is learned is what the row says."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor

from data.encoding.encoder import Encoder
from data.sources.collection import ReadOptions
from data.sources.index import build_index
from data.types import IGNORE, RowError, Sample, Turn
from scripts.make_tiny_model import make
from tests.data.conftest import POLICY
from tests.data.reading import collected

Q = {"role": "user", "content": "<video>Q"}
BAD = {"role": "assistant", "content": "BAD"}
REST = [{"role": "user", "content": "Q2"}, {"role": "assistant", "content": "GOOD"}]
SAID = [{"from": "human", "value": "<video>Q"}, {"from": "gpt", "value": "A"}]
TAGS = [{"from": "system", "value": "No <image>."}, SAID[0], {"from": "gpt", "value": "the <image> tag"}]
TEXT, ANSWER = {"type": "text", "text": "Q"}, {"role": "assistant", "content": "A"}


def shown(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": [*parts, TEXT]}, ANSWER]


CASES = {  # rows, and the text of their labels; None for a row that is quarantined
    "weight": ({"videos": ["a.mp4"], "messages": [Q, BAD | {"weight": 0}, *REST]}, "GOOD<|im_end|>"),
    "loss": ({"videos": ["a.mp4"], "messages": [Q, BAD | {"loss": False}, *REST]}, "GOOD<|im_end|>"),
    "half": ({"videos": ["a.mp4"], "messages": [Q, BAD | {"weight": 0.5}, *REST]}, None),
    "system llava": ({"video": "a.mp4", "system": "RULE", "conversations": SAID}, "A<|im_end|>"),
    "system openai": ({"videos": ["a.mp4"], "system": "RULE", "messages": [Q, ANSWER]}, "A<|im_end|>"),
    "tag": ({"video": "a.mp4", "conversations": TAGS}, "the <image> tag<|im_end|>"),
    "trl video": ({"videos": ["a.mp4"], "messages": shown({"type": "video"})}, "A<|im_end|>"),
    "trl image": ({"images": ["i.png"], "messages": shown({"type": "image"})}, "A<|im_end|>"),
    "path": ({"messages": shown({"type": "video", "path": "a.mp4"}, {"type": "image", "url": "i.png"})}, "A<|im_end|>"),
    "special": ({"messages": [{"role": "user", "content": "<|video_pad|>"}, ANSWER]}, None),
    "tools": ({"messages": [REST[0], ANSWER], "tools": [{"name": "f"}]}, None),
}


@pytest.fixture
def folder(tmp_path, clip):
    shutil.copy(clip, tmp_path / "a.mp4")
    Image.new("RGB", (56, 56)).save(tmp_path / "i.png")
    return tmp_path


def encoded(folder, rows, encoder):
    """The usable samples of a file with these rows, encoded, and why the others are not."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    collection = collected(str(folder / "rows.jsonl"))
    index = build_index(collection, encoder, ReadOptions(progress=False))
    found = [encoder.encode(collection.samples[int(place)]) for place in index.indices_S]
    for encoding, targets in zip(found, index.sizes.targets_S):
        assert targets == (encoding.labels_N != IGNORE).sum()
    return found, [lost.reason for lost in index.quarantined]


def learned(encoding, encoder):
    return encoder.processor.tokenizer.decode(encoding.labels_N[encoding.labels_N != IGNORE])


def test_silent_rows_are_learned_as_written_or_quarantined(folder, encoder):
    rows = [row for row, _ in CASES.values()]
    found, lost = encoded(folder, rows, encoder)
    assert [learned(each, encoder) for each in found] == [text for _, text in CASES.values() if text is not None]
    assert len(lost) == 3 and '"weight" is 0.5' in lost[0] and "<|video_pad|>" in lost[1] and '"tools"' in lost[2]
    texts = [encoder.processor.tokenizer.decode(each.input_ids_N) for each in found]
    for text in texts[2:4]:
        assert text.startswith("<|im_start|>system\nRULE<|im_end|>\n")
    assert "No <image>." in texts[4]


@pytest.fixture(scope="module")
def thinking(tmp_path_factory):
    return Encoder(AutoProcessor.from_pretrained(make("qwen3_5", tmp_path_factory.mktemp("qwen3_5"))), POLICY)


THOUGHTLESS = "<think>\n\n</think>\n\n"


def chat(*answers):
    turns = [turn for text in answers for turn in (Turn("user", ("Q",)), Turn("assistant", (text,)))]
    return Sample("row", tuple(turns))


def test_silent_loss_of_an_empty_thought(encoder, thinking):
    assert learned(encoder.encode(chat(f"{THOUGHTLESS}A")), encoder) == f"{THOUGHTLESS}A<|im_end|>"
    for answer in ("A", f"{THOUGHTLESS}A"):  # the template's generation prompt ends in it
        assert learned(thinking.encode(chat(answer)), thinking) == "A<|im_end|>"


def test_silent_loss_of_a_thought(encoder, thinking):
    for each in (encoder, thinking):
        assert learned(each.encode(chat("<think>\nhm\n</think>\n\nA")), each) == "<think>\nhm\n</think>\n\nA<|im_end|>"
    assert learned(thinking.encode(chat("<think>hm</think>A")), thinking) == "<think>\nhm\n</think>\n\nA<|im_end|>"


def test_silent_loss_of_an_earlier_thought(encoder, thinking):
    assert (
        learned(encoder.encode(chat("<think>hm</think>A", "B")), encoder) == "<think>hm</think>A<|im_end|>B<|im_end|>"
    )
    assert learned(thinking.encode(chat("A", "B")), thinking) == "A<|im_end|>B<|im_end|>"
    with pytest.raises(RowError, match=r"row: the chat template drops text of turn 2 \(assistant\)"):
        thinking.encode(chat("<think>hm</think>A", "B"))


def test_silent_special_tokens_across_text_parts_are_refused(encoder):
    with pytest.raises(RowError, match=r"special token <\|im_end\|>"):
        encoder.encode(Sample("row", (Turn("user", ("Q<|im_", "end|>")), Turn("assistant", ("A",)))))


def test_silent_rows_that_a_template_cannot_show_are_refused(thinking):
    with pytest.raises(RowError, match="row: the chat template rejects the row"):
        thinking.encode(Sample("row", (Turn("assistant", ("A",)),)))
