import shutil

import av
import numpy as np
import pytest
from PIL import Image

from data.media.decode import decode, load_image, probe, probe_image, whole_grids
from data.media.frames import FramePolicy
from data.types import ImageRef, MediaError, VideoRef
from tests.data import videos

EVERY = FramePolicy(fps=1000.0)


@pytest.mark.parametrize("policy", [EVERY, FramePolicy(fps=2.0), FramePolicy(fps=0.5, min_frames=2)])
def test_frames_are_the_ones_shot_at_their_times(clip, policy):
    got = decode(VideoRef(str(clip)), policy)
    assert np.allclose(got.times_T, np.array(videos.numbers(got.frames_THWC)) / 25)
    assert got.times_T[0] == 0 and np.isclose(got.times_T[-1], 99 / 25)
    assert (got.fps, got.duration) == (25.0, 4.0)


@pytest.mark.parametrize(
    ("suffix", "codec", "bf"),
    [("mp4", "libx264", 2), ("mkv", "libx264", 2), ("ts", "libx264", 2), ("webm", "libvpx", 0), ("avi", "mpeg4", 0)],
)
def test_every_container_gives_the_same_frames(tmp_path, suffix, codec, bf):
    path = videos.write(tmp_path / f"a.{suffix}", [i / 25 for i in range(60)], codec=codec, g=10, bf=bf)
    got = decode(VideoRef(str(path)), FramePolicy(fps=3, min_frames=2))
    assert len(got.times_T) == 6
    assert np.allclose(got.times_T, np.array(videos.numbers(got.frames_THWC)) / 25, atol=2e-3)


@pytest.mark.parametrize("name", ["bikes", "carphone_pristine"])
def test_seeking_finds_the_frames_that_reading_through_finds(footage, name):
    every = decode(VideoRef(str(footage[name])), EVERY)
    for fps in (0.3, 1.0, 7.0):
        some = decode(VideoRef(str(footage[name])), FramePolicy(fps=fps, min_frames=2))
        places = np.searchsorted(every.times_T, some.times_T)
        assert np.array_equal(every.times_T[places], some.times_T)
        assert np.array_equal(every.frames_THWC[places], some.frames_THWC)


@pytest.mark.parametrize("g", [25, 250])
def test_frames_far_from_a_keyframe_are_the_same_ones(tmp_path, g):
    path = videos.write(tmp_path / "long.mp4", [i / 25 for i in range(250)], g=g, bf=3, sc_threshold=0)
    for fps in (0.2, 0.7, 1.0):  # of one a second, each stands on a keyframe
        got = decode(VideoRef(str(path)), FramePolicy(fps=fps, min_frames=2))
        assert np.allclose(got.times_T, np.array(videos.numbers(got.frames_THWC)) / 25)
        assert np.allclose(got.times_T, np.linspace(0, 249, len(got.times_T)).round() / 25)


@pytest.mark.parametrize("missing", [1, 2])
def test_the_last_frame_is_given_whether_or_not_others_build_on_it(tmp_path, missing):
    layers = "ts_number_layers=2:ts_target_bitrate=200,300:ts_rate_decimator=2,1:ts_periodicity=2:ts_layer_id=0,1"
    options = {"ts-parameters": f"{layers}:ts_layering_mode=2", "b": 300_000, "deadline": "realtime", "g": 400}
    path = videos.write(tmp_path / "layers.webm", [i / 25 for i in range(100)], codec="libvpx", **options)
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: places[-missing]])
    every, ends = (decode(VideoRef(str(path)), policy) for policy in (EVERY, FramePolicy(fps=0.5, min_frames=2)))
    assert ends.times_T[-1] == every.times_T.max() == pytest.approx((99 - missing) / 25, abs=2e-3)
    assert videos.numbers(ends.frames_THWC) == [0, 99 - missing]


def test_variable_rate_gives_real_times_and_each_frame_once(tmp_path):
    times = [0.0, 0.04, 0.08, 1.0, 1.04, 3.0, 3.5, 3.54]
    path = videos.write(tmp_path / "vfr.mp4", times, bf=0)
    got = decode(VideoRef(str(path)), EVERY)
    shown = videos.numbers(got.frames_THWC)
    assert np.allclose(got.times_T, np.array(times)[shown], atol=1e-3)
    assert len(set(shown)) == len(shown) and len(shown) % 2 == 0


def test_a_segment_keeps_the_times_of_the_file(clip):
    got = decode(VideoRef(str(clip), 1.0, 3.0), FramePolicy(fps=2.0))
    assert len(got.times_T) == 4
    assert got.times_T[0] == 1.0 and got.times_T[-1] < 3.0
    assert np.allclose(got.times_T, np.array(videos.numbers(got.frames_THWC)) / 25)


def test_a_slide_is_given_for_as_long_as_it_is_on_screen(tmp_path):
    path = videos.write(tmp_path / "slides.mp4", [*np.arange(11) / 10, 5.0, 9.0], bf=0)
    last = decode(VideoRef(str(path), 0.0, 2.0), EVERY).times_T[-1]
    assert 0.5 < last <= 1.0  # not the next slide, which comes after the segment
    assert decode(VideoRef(str(path), 2.0, 9.0), EVERY).times_T.tolist() == [1.0, 5.0]


def test_odd_sizes_are_kept(tmp_path):
    path = videos.write(tmp_path / "odd.mp4", [i / 25 for i in range(10)], size=(45, 67))
    assert decode(VideoRef(str(path)), EVERY).frames_THWC.shape == (10, 45, 67, 3)


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
    frames = decode(VideoRef(str(path)), EVERY).frames_THWC
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
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match=rf"cut\.{suffix}: "):
        decode(VideoRef(str(cut)), FramePolicy())
    assert len(decode(VideoRef(str(path)), FramePolicy()).times_T) == 6


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
        decode(VideoRef(str(path)), EVERY)


def test_the_most_crowded_inner_frames_go_first():
    assert whole_grids(np.array([0.0, 0.5, 1.0, 1.1, 2.0]), 2).tolist() == [0, 1, 3, 4]
    assert whole_grids(np.array([0.0]), 2).tolist() == []


def test_images_are_rgb_and_upright(tmp_path):
    image = Image.new("L", (30, 20), 128)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "a.jpg", exif=exif)
    assert load_image(ImageRef(str(tmp_path / "a.jpg"))).shape == (30, 20, 3)
    assert probe_image(ImageRef(str(tmp_path / "a.jpg"))) == (20, 30)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-300])
    with pytest.raises(MediaError, match=r"cut\.jpg"):
        load_image(ImageRef(str(tmp_path / "cut.jpg")))
