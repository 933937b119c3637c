"""Files of every kind give the rows that their writer meant, or say why not."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.media.container import probe
from data.media.frame_list import load_frames
from data.types import RowError, Turn, VideoRef
from tests.data.reading import read
from tests.data.sources.test_shards import pack
from tests.data.videos import numbers, picture

ROW = {"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>é?"}, {"from": "gpt", "value": "A"}]}
SAID = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_line_ends_and_a_byte_order_mark_change_nothing(tmp_path, suffix, mark, end):
    if suffix == ".json":
        text = json.dumps([ROW | {"id": i} for i in range(3)], indent=1, ensure_ascii=False)
    else:
        text = "\n".join(json.dumps(ROW | {"id": i}, ensure_ascii=False) for i in range(3))
        end = end if end != "\r" else "\n"
    (tmp_path / f"a{suffix}").write_bytes((mark + text.replace("\n", end)).encode())
    samples = read(str(tmp_path / f"a{suffix}"))
    assert [sample.id for sample in samples] == ["0", "1", "2"]
    assert samples[2].turns[0].parts == (VideoRef(str(tmp_path / "a.mp4")), "é?")


def test_text_after_a_list_is_refused(tmp_path):
    (tmp_path / "a.json").write_text(f"[{json.dumps(ROW)}]\n[{json.dumps(ROW)}]")
    with pytest.raises(ValueError, match=r"a\.json: text follows the end of its list"):
        read(str(tmp_path / "a.json"))


@pytest.mark.parametrize("turns", [SAID, ROW["conversations"][1:]])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_bare_list_of_turns_is_a_row(tmp_path, suffix, turns):
    text = json.dumps(turns)
    (tmp_path / f"a{suffix}").write_text(f"[{text}]" if suffix == ".json" else text)
    assert read(str(tmp_path / f"a{suffix}"))[0].turns[-1] == Turn("assistant", ("A",))


def test_a_row_with_a_null_id_is_named_by_file_and_line(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": None, "messages": SAID}))
    assert read(str(tmp_path / "a.jsonl"))[0].id == f"{tmp_path / 'a.jsonl'}:1"


def test_a_binary_column_holds_videos(tmp_path, clip):
    said = [
        {"role": "user", "content": "<video>Q", "weight": None},
        {"role": "assistant", "content": "A", "weight": 1.0},
    ]
    for name, value in (("video", clip.read_bytes()), ("videos", [clip.read_bytes()])):
        pq.write_table(pa.Table.from_pylist([{name: value, "messages": said}]), tmp_path / f"{name}.parquet")
        (ref,) = read(str(tmp_path / f"{name}.parquet"))[0].media
        assert probe(ref).frames == 100


def test_weights_in_a_table_are_honoured(tmp_path):
    said = [
        {"role": "user", "content": "Q", "weight": None},
        {"role": "assistant", "content": "BAD", "weight": 0.0},
        {"role": "user", "content": "Q", "weight": None},
        {"role": "assistant", "content": "GOOD", "weight": None},
    ]
    halved = [*SAID[:1], {**SAID[1], "weight": 0.5}]
    pq.write_table(pa.Table.from_pylist([{"messages": said}, {"messages": halved}]), tmp_path / "a.parquet")
    samples = read(str(tmp_path / "a.parquet"))
    assert [turn.is_target for turn in samples[0].turns] == [False, False, False, True]
    with pytest.raises(RowError, match=r'a\.parquet\[1\]: turn 2: "weight" is 0\.5'):
        samples[1]


def test_captions_lie_beside_videos(tmp_path, clip):
    video, extra = clip.read_bytes(), {"key": "1", "duration": 4}
    members = {"0.mp4": video, "0.txt": b"A dog.\n", "1.mp4": video, "1.txt": "é".encode(), "1.json": extra}
    members |= {"2.mp4": video, "2.txt": b"A", "2.json": {"messages": SAID}}
    samples = read(pack(tmp_path / "a.tar", members))
    assert [samples[i].turns[-1].parts for i in (0, 1)] == [("A dog.",), ("é",)]
    assert samples[0].turns[0].parts == samples[0].media and probe(samples[0].media[0]).frames == 100
    with pytest.raises(RowError, match=r"a\.tar/2: has both a \.txt and a \.json with messages"):
        samples[2]


@pytest.mark.parametrize("listed", [{}, {"videos": ["0"]}, {"video": {"path": "0/", "fps": 4}}, "caption"])
def test_a_folder_of_pictures_in_a_shard_is_one_video(tmp_path, listed):
    said = [{"role": "user", "content": "<video>Q"}, SAID[1]]
    row = {"0.txt": b"A"} if listed == "caption" else {"0.json": {"messages": said, **listed}}
    frames = {f"0/{number}.png": picture(number, 64, 64) for number in range(11)}
    samples = read(pack(tmp_path / "a.tar", row | png(frames) | {"0/notes.csv": b"", "1.txt": b"B"}))
    (ref,) = samples[0].media
    clip = load_frames(ref, ref.content, fps=4.0, max_frames=16)
    assert numbers(clip.frames_THWC) == list(range(11)) and ref.path == f"{tmp_path / 'a.tar'}/0"
    assert len(samples) == 2 and samples[0].turns[-1] == Turn("assistant", ("A",))


def png(frames):
    """The contents of PNG files by name."""
    files = {}
    for name, pixels in frames.items():
        Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
        files[name] = file.getvalue()
    return files


def test_a_key_that_occurs_twice_is_refused(tmp_path):
    text = json.dumps({"messages": [SAID[0], SAID[1] | {"weight": 0}]})
    (tmp_path / "a.jsonl").write_text(text.replace('"weight": 0', '"weight": 0, "weight": 1'))
    with pytest.raises(RowError, match=r"a\.jsonl:1: invalid JSON \('weight' occurs twice in an object\)"):
        read(str(tmp_path / "a.jsonl"))[0]


def test_a_column_of_an_unsupported_type_is_one_line_that_names_the_file(tmp_path):
    types = pa.map_(pa.string(), pa.list_(pa.string()))
    table = pa.table({"messages": [SAID], "extra": pa.array([[("ref", ["x"])]], types)})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"a\.parquet: unsupported column \(.*; remove it or write it as text"
    ) as error:
        read(str(tmp_path / "a.parquet"))
    assert "\n" not in str(error.value)


def test_members_that_no_mark_shows_are_refused(tmp_path, clip):
    placeholder = [{"role": "user", "content": [{"type": "video"}]}, SAID[1]]
    named = [{"role": "user", "content": [{"type": "video", "video": "1.mp4"}]}, SAID[1]]
    rows = {f"{i}.json": {"messages": said} for i, said in enumerate((placeholder, named, SAID))}
    videos = {f"{i}.mp4": clip.read_bytes() for i in range(3)}
    samples = read(pack(tmp_path / "a.tar", dict(sorted((rows | videos).items()))))
    assert [samples[i].media[0].path.rsplit("/", 1)[-1] for i in (0, 1)] == ["0.mp4", "1.mp4"]
    with pytest.raises(RowError, match=r"a\.tar/2: lists 1 video\(s\) but has 0 <video>"):
        samples[2]
