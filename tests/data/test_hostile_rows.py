"""No single row ends a run: whatever is wrong with it becomes its quarantine reason."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.loader import step_loader
from data.sources.collection import ReadOptions
from data.sources.index import build_index
from tests.data.reading import InOrder, collected

DEEP = "[" * 2000 + "]" * 2000


def turns(question: str = "<image>What?", answer: str = "red") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def line(**keys: Any) -> str:
    return json.dumps({"id": "bad", "image": "a.png", "conversations": turns()} | keys)


HOSTILE = {
    "a NUL in a path": line(image="a\0.png"),
    "a lone surrogate in a path": line(image="\ud800.png"),
    "JSON nested 2,000 deep": line(extra=0).replace('"extra": 0', f'"extra": {DEEP}'),
    "an id nested 2,000 deep": line(id=0).replace('"id": 0', f'"id": {DEEP}'),
    "an integer of 5,000 digits": line(extra=0).replace('"extra": 0', '"extra": ' + "9" * 5000),
    "a time of 5,000 digits": line(video="a.mp4", image=None, video_start=0).replace(": 0", ": " + "9" * 5000),
    "a time too large for a float": line(video="a.mp4", image=None, video_start=10**400),
    "a lone surrogate in a question": line(conversations=turns("<image>What \ud800?")),
    "a lone surrogate in an answer": line(conversations=turns(answer="\udfff")),
    "a lone surrogate in an id": line(id="\ud800"),
    "a lone surrogate in an accepted answer": line(answers=["\ud800"]),
    "a list as a metric": line(metric=["exact"]),
    "an object as a metric": line(metric={"name": "exact"}),
    "turns that are a list of lists": line(conversations=[[1], [2]]),
    "a list as a role": line(conversations=[{"from": ["human"], "value": "What?"}, turns()[1]]),
    "an object as a path": line(image={"path": {"path": "a.png"}}),
    "no JSON": "{'id': 1}",
    "bytes that are not UTF-8": b'{"id": "\xff\xfe"}',
}
HARMLESS = {
    "NaN as an id": line(id=float("nan")),
    "an object as an id": line(id={"a": [1]}),
    "a null id": line(id=None),
}


def written(folder: Path, *bad: str | bytes) -> Path:
    """A .jsonl file of good rows around the bad ones."""
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    rows = [line(id="first"), *bad, line(id="last")]
    path = folder / "rows.jsonl"
    path.write_bytes(b"".join((row if isinstance(row, bytes) else row.encode()) + b"\n" for row in rows))
    return path


def in_array(path: Path) -> Path:
    """The rows of a .jsonl file as one JSON array."""
    array = path.with_suffix(".json")
    array.write_bytes(b"[" + b",".join(path.read_bytes().splitlines()) + b"]")
    return array


def check_one_lost(path: Path, encoder: Any, workers: int = 0) -> str:
    """The reason of the only row that cannot be used; the others are."""
    index = build_index(collected(str(path)), encoder, ReadOptions(workers=workers, progress=False))
    (lost,) = index.quarantined
    assert len(index) == 2 and lost.reason.isprintable() and len(lost.reason) < 1000
    return lost.reason


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_row_is_quarantined_by_name(name, encoder, tmp_path):
    assert "rows.jsonl:2" in check_one_lost(written(tmp_path, HOSTILE[name]), encoder)


def test_a_path_longer_than_any_file_system_takes_is_quarantined(encoder, tmp_path):
    reason = check_one_lost(written(tmp_path, line(image="a" * 100_000)), encoder)
    assert "rows.jsonl:2: image is text of 100000 characters" in reason


@pytest.mark.parametrize("name", HARMLESS)
def test_an_odd_id_is_a_name(name, encoder, tmp_path):
    index = build_index(collected(str(written(tmp_path, HARMLESS[name]))), encoder, ReadOptions(progress=False))
    assert len(index) == 3 and not index.quarantined


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "no JSON"])
def test_a_hostile_row_of_an_array_is_quarantined_by_name(name, encoder, tmp_path):
    assert "rows.json[1]" in check_one_lost(in_array(written(tmp_path, HOSTILE[name])), encoder)


def test_index_workers_survive_all_hostile_rows_at_once(encoder, tmp_path):
    path = written(tmp_path, *HOSTILE.values())
    index = build_index(collected(str(path)), encoder, ReadOptions(workers=2, progress=False))
    assert len(index) == 2 and len(index.quarantined) == len(HOSTILE)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_that_turned_hostile_after_the_index_was_made_is_left_out_of_its_step(encoder, tmp_path, workers):
    path = written(tmp_path, line(id="later"))
    samples = collected(str(path)).samples
    path.write_bytes(path.read_bytes().replace(b'"later"', b'"\xff\xfe\xff\xfe\xff"'))
    plan = InOrder(((0, 1, 2),))
    (step,) = step_loader(samples, encoder, plan, first_step=0, last_step=1, workers=workers)
    assert step.batches[0].ids == ("first", "last")
    (lost,) = step.quarantined
    assert "rows.jsonl:2" in lost.reason


def test_text_of_a_parquet_column_that_is_not_utf8_is_quarantined(encoder, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    ids = pa.array([b"first", b"\xff\xfe", b"last"], pa.binary()).view(pa.string())
    table = pa.table({"id": ids, "image": ["a.png"] * 3, "conversations": [turns()] * 3})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert "rows.parquet[1]" in check_one_lost(tmp_path / "rows.parquet", encoder)


def test_hostile_members_of_a_shard_are_quarantined(encoder, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "rows.tar", "w", errors="surrogateescape") as archive:
        for name, text in (("first", line(image="first.png")), ("\udcff", line()), ("last", line(image="last.png"))):
            for suffix, content in ((".json", text.encode()), (".png", (tmp_path / "a.png").read_bytes())):
                member = tarfile.TarInfo(name + suffix)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    assert "rows.tar/" in check_one_lost(tmp_path / "rows.tar", encoder)
