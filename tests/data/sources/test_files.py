import json
import pickle

import pytest

from data.types import RowError, VideoRef
from tests.data.reading import read

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
    samples = read(str(file))
    assert [sample.turns[-1].parts for sample in samples] == [("x]",), ("yo",)]
    assert samples[0].turns[0].parts[0] == VideoRef(str(file.parent / "a.mp4"))
    assert samples[0].id == "é" and samples[-1].id.endswith(("rows.jsonl:3", "rows.json[1]"))


def test_media_root_replaces_the_files_folder(file):
    assert read(str(file), media_root="/media")[0].turns[0].parts[0] == VideoRef("/media/a.mp4")


def test_samples_hold_places_not_rows_and_travel_to_workers(file):
    samples = read(str(file))
    assert pickle.loads(pickle.dumps(samples))[0] == samples[0]
    assert [sample.id for sample in samples[:1]] == ["é"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", '{"a": 1}', "not a list of rows"),
        ("a.json", "[{}, {", "invalid JSON"),
        ("a.json", "[]", "contains no rows"),
        ("a.jsonl", "\n \n", "contains no rows"),
        ("a.csv", "a,b", r"cannot read \.csv"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        read(str(tmp_path / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"messages": 1}', r'a\.jsonl:2: "messages" is int'),
        ("{oops", r"a\.jsonl:2: invalid JSON"),
        ("[1]", r"a\.jsonl:2: is list, not an object"),
        ('{"text": 1}', r"has keys \['text'\] but not those of a known layout: conversations; messages; QA;"),
    ],
)
def test_a_bad_row_is_named_when_it_is_read(tmp_path, text, words):
    (tmp_path / "a.jsonl").write_text(f"\n{text}\n")
    with pytest.raises(RowError, match=words) as error:
        read(str(tmp_path / "a.jsonl"))[0]
    assert "\n" not in str(error.value)


def test_an_unknown_format_is_named(file):
    with pytest.raises(ValueError, match="'rows' is unknown; use one of auto, llava, openai"):
        read(str(file), format="rows")
    with pytest.raises(RowError, match='"conversations" is NoneType'):
        read(str(file), format="llava")[1]


def test_files_are_joined_in_the_order_given(file):
    samples = read([str(file), str(file)])
    assert len(samples) == 4 and samples[2] == samples[0] and samples[-1].turns[-1].parts == ("yo",)


def test_media_root_is_a_fence(file, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.mp4").symlink_to("/etc/hostname")
    for name, good in {"a.mp4": 1, "x/../a.mp4": 1, "../a.mp4": 0, "/etc/a.mp4": 0, "link.mp4": 0}.items():
        file.write_text(
            json.dumps([ROWS[0] | {"video": name}])[slice(1, -1) if file.suffix == ".jsonl" else slice(None)]
        )
        samples = read(str(file), media_root=str(tmp_path / "root"))
        if good:
            assert samples[0].media[0].path == str(tmp_path / "root" / name)
        else:
            with pytest.raises(RowError, match=f"{name}' is outside data.media_root="):
                samples[0]
