"""Parquet files and Hugging Face datasets as rows; media as bytes stay bytes."""

import json

import pytest
from datasets import Dataset, Image

from data.media.images import load_image
from data.types import VideoRef
from tests.data.reading import read

TURNS = [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "x"}]
ROWS = [{"id": str(i), "video": "a.mp4", "conversations": TURNS} for i in range(5)]


@pytest.fixture
def table():
    return Dataset.from_list(ROWS)


@pytest.fixture(params=["parquet", "saved", "folder", "streaming", "saved and streaming"])
def given(request, table, tmp_path):
    """The same five rows in several forms."""
    folder = tmp_path / "set"
    if "saved" in request.param:
        table.save_to_disk(folder)
    else:
        folder.mkdir()
        table.to_parquet(folder / "rows.parquet")
    if request.param == "parquet":
        return str(folder / "rows.parquet")
    return {"set": {"path": str(folder), "streaming": "streaming" in request.param}}


def test_rows_are_read_from_all_of_them(given, tmp_path):
    samples = read(given)
    assert [sample.id for sample in samples] == list("01234")
    assert samples[4].turns[0].parts == (VideoRef(str(tmp_path / "set" / "a.mp4")), "What?")
    assert [sample.id for sample in read(given)] == list("01234")  # from what was kept


def test_a_stream_is_cut_where_asked(table, tmp_path):
    table.save_to_disk(tmp_path / "set")
    assert len(read({"set": {"path": str(tmp_path / "set"), "streaming": True, "rows": 2}})) == 2


def test_pictures_in_a_column_are_read_from_it(tmp_path):
    from PIL import Image as Picture

    Picture.new("RGB", (8, 4), "red").save(tmp_path / "red.png")
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "red"}]
    picture = {"bytes": (tmp_path / "red.png").read_bytes(), "path": None}
    table = Dataset.from_list([{"image": picture, "conversations": turns}]).cast_column("image", Image())
    table.to_parquet(tmp_path / "rows.parquet")
    table.save_to_disk(tmp_path / "set")
    for given in (str(tmp_path / "rows.parquet"), str(tmp_path / "set")):
        (ref,) = read(given)[0].media
        assert load_image(ref).shape == (4, 8, 3) and ref.path.startswith("image#")


def test_a_table_that_cannot_be_read_is_named_in_one_line(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"no table")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text(json.dumps(ROWS[0]))
    gone = {"set": {"path": str(tmp_path / "empty"), "split": "gone"}}
    for given, words in ((str(tmp_path / "rows.parquet"), "unreadable Parquet file"), (gone, "cannot be read")):
        with pytest.raises(ValueError, match=words) as error:
            read(given)
        assert "\n" not in str(error.value)
