"""What a row says about the frames of its own videos is honoured, or the row is refused by the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.encoding.encoder import Encoder
from data.encoding.size_prediction import predict_size, predict_sizes
from data.formats.roots import Folder
from data.formats.rows import Format
from data.media.frames import FramePolicy
from data.sources.collection import ReadOptions, collect
from data.sources.headers import read_headers
from data.sources.index import build_index
from data.sources.spec import parse_sources
from data.types import Encoding, FrameList, MediaError, RowError, Sample, VideoRef
from tests.data import videos

QUESTION = [{"type": "text", "text": "What?"}]


def part_row(**part: Any) -> dict[str, Any]:
    """OpenAI messages with one video."""
    content = [{"type": "video", **part}, *QUESTION]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}]}


def llava_row(video: Any, **row: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "A"}]
    return {"video": video, "conversations": turns, **row}


def converted(row: dict[str, Any], folder: Path = Path()) -> Sample:
    return Format().sample(row, Folder(str(folder)), "row")


def encoded(encoder: Encoder, sample: Sample) -> Encoding:
    """The sample, encoded; its size by the headers alone must be the same."""
    encoding = encoder.encode(sample)
    size = predict_size(encoder, sample, read_headers(sample.media, encoder.limits))
    assert size.frames == len(encoder.read(sample)[0][0].frames_THWC)
    assert size.patches == int(encoding.video_grid_thw_V3.prod(dim=1).sum())
    assert size.fixed + sum(grids * tokens for grids, tokens in size.videos) == len(encoding.input_ids_N)
    return encoding


def frames_of(encoder: Encoder, row: dict[str, Any]) -> tuple[int, int]:
    """(frames, grids)"""
    sample = converted(row)
    return len(encoder.read(sample)[0][0].frames_THWC), int(encoded(encoder, sample).video_grid_thw_V3[0, 0])


@pytest.fixture
def encoder(processor):
    return Encoder(processor, FramePolicy(fps=1.0, min_pixels=56 * 56, max_pixels=112 * 112))


@pytest.mark.parametrize("form", ["part", "url", "entry", "row"])
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (4, 2)),
        ({"fps": 2.5}, (10, 5)),
        ({"fps": "2.5"}, (10, 5)),
        ({"nframes": 8}, (8, 4)),
        ({"max_frames": 2}, (2, 1)),
        ({"min_frames": 12}, (12, 6)),
        ({"fps": 5, "max_frames": 6.0}, (6, 3)),
    ],
)
def test_frames_of_one_video_are_not_silently_the_runs(encoder, clip, form, keys, expected):
    row = {
        "part": part_row(video=str(clip), **keys),
        "url": part_row(type="video_url", video_url={"url": str(clip), **keys}),
        "entry": llava_row({"video": str(clip), **keys}),
        "row": llava_row(str(clip), **keys),
    }[form]
    assert frames_of(encoder, row) == expected


@pytest.mark.parametrize("key", ["max_pixels", "total_pixels"])
def test_pixels_of_one_video_are_not_silently_the_runs(encoder, footage, key):
    video = str(footage["carphone_pristine"])
    runs, own = (
        encoded(encoder, converted(part_row(video=video, **keys))) for keys in ({}, {key: 56 * 56, "nframes": 4})
    )
    areas = [int(each.video_grid_thw_V3[0, 1:].prod()) for each in (runs, own)]
    assert areas[1] < areas[0]


def test_min_pixels_of_one_video_are_not_silently_the_runs(encoder, clip):
    runs, own = (
        encoded(encoder, converted(part_row(video=str(clip), **keys)))
        for keys in ({}, {"min_pixels": 224 * 224 * 4, "max_pixels": 448 * 448 * 4})
    )
    assert own.video_grid_thw_V3[0, 1:].prod() > runs.video_grid_thw_V3[0, 1:].prod()


def test_videos_of_one_row_do_not_silently_share_settings(encoder, clip):
    row = part_row(video=str(clip), fps=5.0)
    row["messages"][0]["content"].insert(1, {"type": "video", "video": str(clip), "nframes": 4})
    row["messages"][0]["content"].insert(2, {"type": "video", "video": str(clip)})
    sample = converted(row)
    assert encoder.encode(sample).video_grid_thw_V3[:, 0].tolist() == [10, 2, 2]
    sizes = predict_sizes(encoder, [sample], read_headers(sample.media, encoder.limits))
    assert [grids for grids, _ in sizes[0].videos] == [10, 2, 2]


def test_the_time_between_grids_is_not_silently_the_runs(encoder, clip):
    seconds = [
        float(encoder.encode(converted(part_row(video=str(clip), **keys))).second_per_grid_V[0])
        for keys in ({}, {"fps": 5.0})
    ]
    assert seconds == [2.0, 0.4]


@pytest.mark.parametrize(
    "keys",
    [
        {"resized_height": 224},
        {"resized_width": 224},
        {"num_frames": 8},
        {"raw_fps": 30},
        {"video_fps": 30},
        {"frames_indices": [0, 5]},
        {"frames": 8},
        {"frames": ["0.jpg", "1.jpg"]},
        {"sample_fps": 2},
        {"timestamps": [0, 1]},
        {"nframes": 8, "fps": 2},
        {"fps": "fast"},
        {"fps": float("nan")},
        {"fps": float("inf")},
        {"fps": 0},
        {"fps": True},
        {"fps": [2]},
        {"nframes": 7.5},
        {"nframes": -4},
        {"max_pixels": 10**400},
        {"min_frames": "10e400"},
    ],
)
def test_a_setting_that_no_server_takes_is_refused_by_key_not_silently_dropped(keys):
    for row in (part_row(video="a.mp4", **keys), llava_row({"video": "a.mp4", **keys})):
        with pytest.raises(RowError, match="row: .*" + next(iter(keys))):
            converted(row)


@pytest.mark.parametrize(
    "keys", [{"fps": 60}, {"nframes": 1}, {"nframes": 1000}, {"min_pixels": 99999, "max_pixels": 9}]
)
def test_a_setting_out_of_a_servers_range_is_refused_by_key_not_silently_clamped(encoder, clip, keys):
    sample = converted(part_row(video=str(clip), **keys))
    name = {"nframes": "frames"}.get(next(iter(keys)), next(iter(keys)))
    with pytest.raises(RowError, match=name):
        encoder.encode(sample)
    (size,) = predict_sizes(encoder, [sample], read_headers(sample.media, encoder.limits))
    assert isinstance(size, RowError)


@pytest.mark.parametrize("key", ["min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"])
def test_the_size_of_a_single_image_is_refused_by_key_not_silently_dropped(key):
    part = {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png", key: 784}, *QUESTION]}]}
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A"}]
    entry = {"image": {"path": "a.png", key: 784}, "conversations": turns}
    for row in (part, entry, {"image": "a.png", "conversations": turns, key: 784}):
        with pytest.raises(RowError, match=key):
            converted(row)


def test_nulls_of_a_table_are_not_silently_settings(clip):
    sample = converted(part_row(video=str(clip), fps=None, nframes=None, max_pixels=None, timestamps=None))
    assert sample.media == (VideoRef(str(clip)),) and not sample.has_own_settings


def test_settings_are_not_silently_the_same_in_the_index(encoder, clip, tmp_path):
    def index(*rows):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        reading = ReadOptions(progress=False)
        return build_index(
            collect(parse_sources("data.train", str(tmp_path / "rows.jsonl")), reading), encoder, reading
        )

    before = index(part_row(video=str(clip), fps=1.0), part_row(video=str(clip)))
    after = index(part_row(video=str(clip), fps=5.0), part_row(video=str(clip)))
    assert after.sizes.unpruned()[0] > before.sizes.unpruned()[0]
    assert (after.sizes.unpruned()[1], after.digests_S[1]) == (before.sizes.unpruned()[1], before.digests_S[1])
    assert after.digests_S[0] != before.digests_S[0]
    assert after.own_settings_S.tolist() == [True, False]


@pytest.fixture
def pictures(tmp_path):
    """Eleven numbered frames in a folder, whose names do not sort as text."""
    (tmp_path / "frames").mkdir()
    for number in range(11):
        Image.fromarray(videos.picture(number, 64, 64)).save(tmp_path / "frames" / f"f{number}.png")
    (tmp_path / "frames" / "notes.txt").write_text("not a frame")
    return [f"frames/f{number}.png" for number in range(11)]


def listed(form: str, pictures: list[str], **keys: Any) -> dict[str, Any]:
    """A row whose video is these pictures, or the folder that holds them."""
    return {
        "part": part_row(video=pictures, **keys),
        "url": part_row(video=[f"file://{name}" for name in pictures], **keys),
        "llava": llava_row(pictures, **keys),
        "nested": llava_row(None, videos=[pictures], **keys),
        "entry": llava_row({"path": pictures, **keys}),
        "mappings": llava_row([{"path": name} for name in pictures], **keys),
        "folder": part_row(video="frames", **keys),
        "folder url": part_row(video="frames/", **keys),
    }[form]


@pytest.mark.parametrize("form", ["part", "llava", "nested", "entry", "mappings", "folder", "folder url"])
def test_a_list_of_pictures_is_one_video_not_silently_many(encoder, tmp_path, pictures, form):
    sample = converted(listed(form, pictures, fps=4), tmp_path)
    (clip,), _ = encoder.read(sample)
    assert videos.numbers(clip.frames_THWC) == list(range(11))
    encoding = encoded(encoder, sample)
    assert encoding.video_grid_thw_V3[0, 0] == 6  # an odd number is padded by the processor
    assert float(encoding.second_per_grid_V[0]) == 0.5


def test_a_list_of_pictures_without_a_rate_is_not_silently_at_another(encoder, tmp_path, pictures):
    sample = converted(listed("part", pictures), tmp_path)
    assert float(encoder.encode(sample).second_per_grid_V[0]) == 2 / encoder.policy.fps


def test_sample_fps_of_a_list_is_not_silently_dropped(encoder, tmp_path, pictures):
    sample = converted(listed("part", pictures, sample_fps="8"), tmp_path)
    assert float(encoder.encode(sample).second_per_grid_V[0]) == 0.25


def test_timestamps_of_a_list_are_not_silently_even(encoder, tmp_path, pictures):
    times = [0.5 * number**2 for number in range(11)]
    sample = converted(listed("part", pictures, timestamps=times), tmp_path)
    (clip,), _ = encoder.read(sample)
    assert (clip.frame_indices_T / clip.fps).tolist() == clip.times_T.tolist() == times
    assert float(encoded(encoder, sample).second_per_grid_V[0]) == pytest.approx(2 * 50 / 10)


def test_timestamps_a_millisecond_apart_are_not_refused_for_their_rounding(tmp_path, pictures):
    times = [1.1 + number / 1000 for number in range(11)]
    assert times[1] - times[0] < 0.001
    (video,) = converted(listed("part", pictures, timestamps=times), tmp_path).media
    assert video.content.times == tuple(times)


def test_pictures_of_a_list_are_not_silently_resized_together(encoder, tmp_path, pictures):
    Image.new("RGB", (32, 64)).save(tmp_path / "frames" / "f7.png")
    sample = converted(listed("part", pictures), tmp_path)
    with pytest.raises(MediaError, match=r"f7\.png: is 32x64, the first frame of its video is 64x64"):
        encoder.encode(sample)
    (size,) = predict_sizes(encoder, [sample], read_headers(sample.media, encoder.limits))
    assert "f7.png: is 32x64" in str(size)


def test_a_missing_picture_of_a_list_is_not_silently_left_out(encoder, tmp_path, pictures):
    (tmp_path / "frames" / "f7.png").unlink()
    sample = converted(listed("part", pictures), tmp_path)
    with pytest.raises(MediaError, match=r"f7\.png: no such file"):
        encoder.encode(sample)
    (size,) = predict_sizes(encoder, [sample], read_headers(sample.media, encoder.limits))
    assert isinstance(size, MediaError)


def test_too_long_a_list_of_pictures_is_not_silently_cut(processor, tmp_path, pictures):
    encoder = Encoder(processor, FramePolicy(max_frames=10))
    with pytest.raises(MediaError, match=r"11 frames exceed data.max_frames=10"):
        encoder.encode(converted(listed("part", pictures), tmp_path))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"nframes": 4}, "nframes"),
        ({"max_frames": 4}, "max_frames"),
        ({"fps": 1, "sample_fps": 2}, "fps and sample_fps"),
        ({"timestamps": [0, 1]}, "timestamps must be a list of 11"),
        ({"timestamps": [0] * 11}, "timestamps must rise"),
        ({"timestamps": [*range(10), "x"]}, "timestamps"),
        ({"timestamps": list(range(11)), "fps": 1}, "timestamps and a frame rate"),
        ({"video_start": 1}, "video_start"),
    ],
)
def test_a_key_that_a_list_of_pictures_cannot_follow_is_not_silently_dropped(tmp_path, pictures, keys, reason):
    with pytest.raises(RowError, match=reason):
        converted(listed("part", pictures, **keys), tmp_path)


def test_pictures_of_a_folder_do_not_silently_leave_the_media_root(tmp_path, pictures):
    (tmp_path / "outside.png").write_bytes((tmp_path / pictures[0]).read_bytes())
    (tmp_path / "frames" / "f11.png").symlink_to(tmp_path / "outside.png")
    row = part_row(video=".")
    with pytest.raises(RowError, match=r"f11.png' is outside data.media_root"):
        Format().sample(row, Folder(str(tmp_path / "frames"), restricted=True), "row")


def test_a_folder_without_pictures_is_not_silently_an_empty_video(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RowError, match="holds no pictures"):
        converted(part_row(video="empty"), tmp_path)


def test_another_picture_in_a_folder_is_not_silently_overlooked_by_the_index(encoder, tmp_path, pictures):
    def index():
        reading = ReadOptions(progress=False, cache=str(tmp_path / "cache"))
        return build_index(
            collect(parse_sources("data.train", str(tmp_path / "rows.jsonl")), reading), encoder, reading
        )

    (tmp_path / "rows.jsonl").write_text(json.dumps(part_row(video="frames")) + "\n")
    before = index()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "frames" / "f11.png")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "frames" / "f12.png")
    assert index().sizes.unpruned()[0] > before.sizes.unpruned()[0]


def test_pictures_from_bytes_are_not_silently_mixed_up(encoder, tmp_path, pictures):
    entries = [{"bytes": (tmp_path / name).read_bytes(), "path": None} for name in pictures]
    sample = converted(llava_row(None, videos=[entries]))
    assert isinstance(sample.media[0].content, FrameList)
    assert videos.numbers(encoder.read(sample)[0][0].frames_THWC) == list(range(11))
