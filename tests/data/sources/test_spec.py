"""What data.train may say; a mistake is one line that names it."""

import pytest

from data.sources.spec import Source, parse_sources


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    for name in ("a.jsonl", "b.parquet", "shards/1.tar", "shards/0.tar", "c.txt", "odd[1].jsonl"):
        (tmp_path / name).write_text("")


@pytest.mark.parametrize(
    ("given", "paths"),
    [
        ("a.jsonl", ["a.jsonl"]),
        ("shards/*.tar", ["shards/0.tar", "shards/1.tar"]),
        (["b.parquet", "shards/*.tar"], ["b.parquet", "shards/0.tar", "shards/1.tar"]),
        ("odd[1].jsonl", ["odd[1].jsonl"]),
        ("user/name", ["user/name"]),
        ("shards", ["shards"]),
    ],
)
def test_files_globs_lists_and_datasets_are_one_source(files, given, paths):
    (part,) = parse_sources("data.train", given)
    assert part.weight is None and part.paths == paths


def test_a_mapping_is_a_mixture_by_weight(files):
    film = {"path": "user/name", "weight": 2, "streaming": True}
    assert parse_sources(
        "data.train", {"a.jsonl": 1, "shards/*.tar": 0.5, "film": film, "b": {"path": ["b.parquet"]}}
    ) == [
        Source("a.jsonl", 1),
        Source("shards/*.tar", 0.5),
        Source("user/name", 2, streaming=True),
        Source(["b.parquet"], 1.0),
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("no/*.tar", r"data.train=no/\*.tar matches no file"),
        ("gone.jsonl", "data.train=gone.jsonl does not exist"),
        ("/gone", "data.train=/gone does not exist"),
        ("c.txt", r"cannot read .txt \(c.txt\)"),
        ([], "is not a path"),
        (7, "data.train=7 is not a path"),
        ({}, "names nothing"),
        ({"a.jsonl": 0}, r"data.train.a.jsonl has weight 0: give a positive number"),
        ({"a.jsonl": -1.5}, "weight -1.5"),
        ({"a.jsonl": "much"}, "weight 'much'"),
        ({"a": {"weight": 1}}, "data.train.a has no path"),
        ({"a": {"path": "a.jsonl", "wieght": 1}}, "data.train.a: unknown key wieght; use path, rows"),
        ({"a": {"path": "a.jsonl", "streaming": True}}, "is a file, which needs no streaming"),
        ({"a": {"path": "user/name", "rows": 9}}, "rows=9 limits a stream"),
    ],
)
def test_a_mistake_is_one_line(files, given, words):
    with pytest.raises(ValueError, match=words) as error:
        parse_sources("data.train", given)
    assert "\n" not in str(error.value)
