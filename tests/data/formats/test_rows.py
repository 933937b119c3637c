import json
import pickle

import pytest

from data.formats import load
from data.types import RowError, VideoRef

ROWS = [
    {
        "id": "é",
        "video": "a.mp4",
        "conversations": [{"from": "human", "value": "<video>What, ü?"}, {"from": "gpt", "value": "x]"}],
    },
    {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [{"type": "text", "text": "yo"}]},
        ]
    },
]


@pytest.fixture(params=[".json", ".jsonl"])
def file(request, tmp_path):
    path = tmp_path / f"rows{request.param}"
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path.write_text("\n\n".join(lines) if request.param == ".jsonl" else f"[{' , '.join(lines)}]\n", encoding="utf-8")
    return path


def test_rows_of_both_formats_share_a_file(file):
    samples = load(str(file))
    assert [sample.turns[-1].parts for sample in samples] == [("x]",), ("yo",)]
    assert samples[0].turns[0].parts[0] == VideoRef(str(file.parent / "a.mp4"))
    assert samples[0].id == "é" and samples[-1].id.endswith(("rows.jsonl:3", "rows.json[1]"))


def test_media_root_replaces_the_files_folder(file):
    assert load(str(file), media_root="/media")[0].turns[0].parts[0] == VideoRef("/media/a.mp4")


def test_samples_hold_places_not_rows_and_travel_to_workers(file):
    samples = load(str(file))
    assert pickle.loads(pickle.dumps(samples))[0] == samples[0]
    assert [sample.id for sample in samples[:1]] == ["é"]


def test_parquet_rows_are_read_too(tmp_path):
    from datasets import Dataset

    Dataset.from_list([ROWS[0]]).to_parquet(str(tmp_path / "rows.parquet"))
    assert load(str(tmp_path / "rows.parquet"))[0].turns[1].parts == ("x]",)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"messages": 1}\n{oops', r'a\.jsonl:1: "messages" is int'),
        ("a.jsonl", "\n{oops", r"a\.jsonl:2: is no valid JSON"),
        ("a.jsonl", "[1]", r"a\.jsonl:1: is list, not an object"),
        ("a.jsonl", '{"text": 1}', r"has keys \['text'\] but neither"),
        ("a.json", '{"a": 1}', "no list of rows"),
        ("a.json", "[{}, {", "no valid JSON"),
        ("a.json", "[]", "holds no rows"),
        ("a.csv", "a,b", r"cannot read \.csv"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        load(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_an_unknown_format_are_named(file):
    with pytest.raises(ValueError, match=r"gone\.jsonl: no such data file"):
        load("gone.jsonl")
    with pytest.raises(ValueError, match="'rows' is unknown; use auto, llava, openai"):
        load(str(file), format="rows")
    with pytest.raises(RowError, match='"conversations" is NoneType'):
        load(str(file), format="llava")
