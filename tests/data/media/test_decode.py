import shutil

import av
import numpy as np
import pytest

from data.media.container import probe
from data.media.decode import decode
from data.types import MediaError, VideoRef
from tests.data import videos
from tests.data.videos import every


def evenly(count):
    return lambda info: info.first + np.linspace(0, info.frames - 1, count).round().astype(int)


@pytest.mark.parametrize("count", [2, 7, 100])
def test_frames_are_the_ones_at_their_places(clip, count):
    got = decode(VideoRef(str(clip)), evenly(count))
    assert videos.numbers(got.frames_THWC) == got.frame_indices_T.tolist()
    assert np.allclose(got.times_T, got.frame_indices_T / 25)
    assert got.frame_indices_T[0] == 0 and got.frame_indices_T[-1] == 99
    assert (got.fps, got.frames, got.duration) == (25.0, 100, 4.0)


@pytest.mark.parametrize(
    ("suffix", "codec", "bf"),
    [
        ("mp4", "libx264", 2),
        ("mkv", "libx264", 2),
        ("webm", "libvpx", 0),
        ("webm", "libvpx-vp9", 0),
        ("avi", "mpeg4", 0),
        ("avi", "mpeg4", 2),
    ],
)
def test_every_container_gives_the_same_frames(tmp_path, suffix, codec, bf):
    path = videos.write(tmp_path / f"a.{suffix}", [i / 25 for i in range(60)], codec=codec, g=10, bf=bf)
    got = decode(VideoRef(str(path)), evenly(7))
    assert videos.numbers(got.frames_THWC) == got.frame_indices_T.tolist() == [0, 10, 20, 30, 39, 49, 59]
    assert np.allclose(got.times_T, got.frame_indices_T / 25, atol=2e-3)


@pytest.mark.parametrize("name", ["bikes", "carphone_pristine"])
def test_seeking_finds_the_frames_that_reading_through_finds(footage, name):
    whole = decode(VideoRef(str(footage[name])), every)
    for count in (3, 10, 70):
        some = decode(VideoRef(str(footage[name])), evenly(count))
        assert np.array_equal(whole.times_T[some.frame_indices_T], some.times_T)
        assert np.array_equal(whole.frames_THWC[some.frame_indices_T], some.frames_THWC)


@pytest.mark.parametrize("g", [25, 250])
def test_frames_far_from_a_keyframe_are_the_same_ones(tmp_path, g):
    path = videos.write(tmp_path / "long.mp4", [i / 25 for i in range(250)], g=g, bf=3, sc_threshold=0)
    for count in (2, 7, 10):
        got = decode(VideoRef(str(path)), evenly(count))
        assert videos.numbers(got.frames_THWC) == got.frame_indices_T.tolist()


@pytest.mark.parametrize("missing", [1, 2])
def test_the_last_frame_is_given_whether_or_not_others_build_on_it(tmp_path, missing):
    layers = "ts_number_layers=2:ts_target_bitrate=200,300:ts_rate_decimator=2,1:ts_periodicity=2:ts_layer_id=0,1"
    options = {"ts-parameters": f"{layers}:ts_layering_mode=2", "b": 300_000, "deadline": "realtime", "g": 400}
    path = videos.write(tmp_path / "layers.webm", [i / 25 for i in range(100)], codec="libvpx", **options)
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: places[-missing]])
    ends = decode(VideoRef(str(path)), lambda info: np.array([0, info.readable - 1]))
    assert videos.numbers(ends.frames_THWC) == [0, 99 - missing]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_at_a_variable_rate_the_nth_frame_is_the_nth_shown_and_real_times_are_kept(tmp_path, suffix):
    times = [0.0, 0.04, 0.08, 1.0, 1.04, 3.0, 3.5, 3.54]
    path = videos.write(tmp_path / f"vfr.{suffix}", times, bf=2)
    got = decode(VideoRef(str(path)), every)
    assert videos.numbers(got.frames_THWC) == list(range(8))
    assert np.allclose(got.times_T, times, atol=1e-3)


def test_a_segment_keeps_the_places_and_times_of_the_file(clip):
    got = decode(VideoRef(str(clip), 1.0, 3.0), evenly(4))
    assert (got.frame_indices_T[0], got.frame_indices_T[-1], got.frames) == (25, 74, 50)
    assert np.allclose(got.times_T, np.array(videos.numbers(got.frames_THWC)) / 25)


def test_a_segment_begins_with_the_frame_on_screen(tmp_path):
    path = videos.write(tmp_path / "slides.mp4", [*np.arange(11) / 10, 5.0, 9.0], bf=0)
    assert decode(VideoRef(str(path), 0.0, 2.0), every).times_T[-1] == 1.0
    assert decode(VideoRef(str(path), 2.0, 9.0), every).times_T.tolist() == [1.0, 5.0]


def test_frames_whose_time_stamps_are_out_of_order_are_counted(tmp_path):
    path = videos.write(tmp_path / "b.avi", [i / 25 for i in range(60)], codec="mpeg4", g=12, bf=2)
    got = decode(VideoRef(str(path)), every)
    assert videos.numbers(got.frames_THWC) == list(range(60))


def test_odd_sizes_are_kept(tmp_path):
    path = videos.write(tmp_path / "odd.mp4", [i / 25 for i in range(10)], size=(45, 67))
    assert decode(VideoRef(str(path)), every).frames_THWC.shape == (10, 45, 67, 3)


@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV writes no rotation")
def test_a_rotated_video_stands_upright(tmp_path):
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.set_display_rotation(90)  # counter-clockwise
        picture = np.zeros((32, 64, 3), np.uint8)
        picture[:, 48:] = 255  # the right edge turns to the top
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    frames = decode(VideoRef(str(path)), every).frames_THWC
    assert frames.shape == (4, 64, 32, 3)
    assert frames[:, :12].mean() > 240 and frames[:, 20:].mean() < 10


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_cut_off_tail_is_an_error(tmp_path, suffix):
    rng = np.random.default_rng(0)
    path = tmp_path / f"whole.{suffix}"
    with av.open(str(path), "w", options={"movflags": "faststart"} if suffix == "mp4" else {}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(75):
            noise = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    whole = path.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for share in (0.5, 0.7):
        cut.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(MediaError, match=rf"cut\.{suffix}: "):
            decode(VideoRef(str(cut)), evenly(6))
    assert len(decode(VideoRef(str(path)), evenly(6)).times_T) == 6


def test_a_transport_stream_is_refused_as_servers_see_other_frames_of_it(tmp_path):
    path = videos.write(tmp_path / "a.ts", [i / 25 for i in range(60)])
    with pytest.raises(MediaError, match="cannot seek"):
        probe(VideoRef(str(path)))


def test_interlaced_pictures_are_refused_as_servers_garble_them(tmp_path):
    path = videos.write(tmp_path / "a.avi", [i / 25 for i in range(20)], codec="mpeg4", flags="+ildct+ilme", bf=0)
    with pytest.raises(MediaError, match="is interlaced, "):
        decode(VideoRef(str(path)), evenly(4))


def test_a_frame_of_which_the_file_holds_a_part_is_an_error(tmp_path):
    path = videos.write(tmp_path / "a.avi", [i / 25 for i in range(20)], codec="mjpeg", size=(480, 640))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    with pytest.raises(MediaError, match="truncated"):
        decode(VideoRef(str(path)), every)


def test_unusable_files_are_named_with_a_reason(tmp_path, clip):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video" * 100)
    headless = tmp_path / "headless.mp4"
    shutil.copy(clip, headless)
    headless.write_bytes(headless.read_bytes().replace(b"moov", b"xxxx"))
    for name, reason in [("gone", "no such file"), ("empty", "empty"), ("text", "Invalid"), ("headless", "Invalid")]:
        with pytest.raises(MediaError, match=rf"{name}\.mp4: .*{reason}") as error:
            probe(VideoRef(str(tmp_path / f"{name}.mp4")))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("start", "end"), [(2.0, 1.0), (9.0, None), (-1.0, 2.0)])
def test_an_impossible_segment_is_an_error(clip, start, end):
    with pytest.raises(MediaError, match=f"from {start:g} to"):
        probe(VideoRef(str(clip), start, end))


def test_a_single_frame_is_no_video(tmp_path):
    path = videos.write(tmp_path / "one.mp4", [0.0])
    with pytest.raises(MediaError, match="give it as an image"):
        decode(VideoRef(str(path)), lambda info: np.zeros(0, int))
