"""What a server would count, from headers that are right, wrong or silent."""

import struct

import av
import numpy as np
import pytest

from data.media.container import probe
from data.media.decode import decode
from data.types import MediaError, VideoRef
from tests.data import videos


def test_the_header_of_a_plain_file_counts_its_frames(clip):
    info = probe(VideoRef(str(clip)))
    assert (info.frames, info.readable, info.first, info.fps) == (100, 100, 0, 25.0)


@pytest.mark.parametrize("suffix", ["webm", "mkv"])
def test_a_container_that_counts_nothing_is_measured_by_its_duration(tmp_path, suffix):
    codec = "libvpx" if suffix == "webm" else "libx264"
    info = probe(VideoRef(str(videos.write(tmp_path / f"a.{suffix}", [i / 25 for i in range(61)], codec=codec))))
    assert (info.frames, info.readable) == (61, 61)


def test_of_a_header_that_counts_one_frame_too_many_the_last_one_drops_out(tmp_path):
    path = videos.write(tmp_path / "more.avi", [i / 25 for i in range(30)], codec="mpeg4", bf=0)
    content = bytearray(path.read_bytes())
    length = content.find(b"strh") + 40
    content[length : length + 4] = struct.pack("<I", 31)
    path.write_bytes(content)
    info = probe(VideoRef(str(path)))
    assert (info.frames, info.readable) == (31, 30)
    assert decode(VideoRef(str(path)), videos.every).frame_indices_T.tolist() == list(range(30))


def test_a_header_that_counts_far_too_many_is_corrected_as_servers_do(tmp_path):
    path = videos.write(tmp_path / "vfr.mkv", [0.0, 0.04, 0.08, 1.0, 1.04, 3.0, 3.5, 3.54], bf=0)
    info = probe(VideoRef(str(path)))  # 3.58 s at 25 fps would be 90
    assert (info.frames, info.readable, info.fps) == (8, 8, 25.0)


def test_a_file_of_which_servers_would_see_the_beginning_only_is_refused(tmp_path):
    gaps = np.random.default_rng(0).choice([0.02, 0.04, 0.1, 0.3], 80)
    path = videos.write(tmp_path / "gaps.webm", list(gaps.cumsum()), codec="libvpx")
    with pytest.raises(MediaError, match=r"gaps\.webm: its header counts 2\d\d frames but it has 80, .* constant rate"):
        probe(VideoRef(str(path)))


def test_at_a_variable_rate_a_header_is_doubted_where_servers_doubt_it(tmp_path):
    gaps = np.random.default_rng(1).choice([0.02, 0.04, 0.1, 0.5], 120)
    info = probe(VideoRef(str(videos.write(tmp_path / "gaps.mp4", list(gaps.cumsum()), bf=2, g=10))))
    assert (info.frames, info.readable) == (118, 118)  # as vLLM 0.32.0 counts this file of 120 frames


def test_sound_that_outlasts_the_picture_is_no_cut(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=16000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for number in range(90):
            frame = av.VideoFrame.from_ndarray(videos.picture(number, 48, 64), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for number in range(100):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.rate, silence.pts = 16000, number * 1024
            container.mux(audio.encode(silence))
        container.mux(audio.encode())
    info = probe(VideoRef(str(path)))
    assert (info.frames, info.readable, info.duration) == (90, 90, pytest.approx(3.6, abs=0.05))
    assert len(decode(VideoRef(str(path)), videos.every).frame_indices_T) == 90


@pytest.mark.parametrize("keyframes", [30, 90], ids=["a later keyframe is shown", "the only keyframe is hidden"])
def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path, keyframes):
    whole = videos.write(tmp_path / "whole.mp4", [i / 30 for i in range(90)], g=keyframes, bf=2)
    trimmed = videos.trim(whole, tmp_path / "trimmed.mov", 1.12)
    info = probe(VideoRef(str(trimmed)))
    with av.open(str(trimmed)) as container:
        shown = sum(1 for _ in container.decode(video=0))
        assert container.streams.video[0].frames > shown + 1
    assert info.frames == info.readable == shown
