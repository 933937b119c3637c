"""WebDataset shards as rows."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from data.media.container import probe
from data.types import RowError
from tests.data.reading import read

TURNS = [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "yes"}]


def pack(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            text = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return str(path)


@pytest.fixture
def shard(tmp_path, clip):
    video = clip.read_bytes()
    return pack(
        tmp_path / "a.tar",
        {
            "x/0.mp4": video,
            "x/0.json": {"id": "0", "conversations": TURNS},
            "x/1.json": {"video": "x/1.clip.mp4", "conversations": TURNS},
            "x/1.clip.mp4": video,
            "x/2.json": {"video": "x/0.mp4", "conversations": TURNS},
            "x/3.mp4": video,
        },
    )


def test_rows_find_their_members(shard, clip):
    samples = read(shard)
    assert len(samples) == 4 and samples[0].id == "0" and samples[1].id == f"{shard}/x/1"
    for place, name in enumerate(["x/0.mp4", "x/1.clip.mp4"]):
        (ref,) = samples[place].media
        assert ref.path == f"{shard}/{name}"
        assert probe(ref).frames == 100


def test_a_row_that_names_no_member_or_is_none_is_refused(shard):
    samples = read(shard)
    with pytest.raises(RowError, match=r"x/2: .*a.tar has no member 'x/0.mp4'"):
        samples[2]
    with pytest.raises(RowError, match=r"x/3: has members \['x/3.mp4'\]; pack one .json"):
        samples[3]


@pytest.mark.parametrize("cut", [100, 700, -10240])
def test_a_shard_that_ends_early_is_named(shard, cut):
    with Path(shard).open("r+b") as file:
        whole = file.read()
        file.truncate(cut % len(whole))
    with pytest.raises(ValueError, match=r"a.tar: (ends early|truncated or corrupt tar archive)") as error:
        read(shard)
    assert "\n" not in str(error.value)


def test_a_video_that_tar_stores_as_a_link_is_found(tmp_path, clip):
    rows = [tmp_path / f"{i}.json" for i in range(2)]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for path in rows:
            path.write_text(json.dumps({"conversations": TURNS}))
            archive.add(path, path.name)
            archive.add(clip, f"{path.stem}.mp4")
    assert [probe(sample.media[0]).frames for sample in read(str(tmp_path / "a.tar"))] == [100, 100]
