"""A file may neither take longer nor more memory than a sample, even where only its header is read."""

import resource
import shutil
import time
from multiprocessing import get_context
from zlib import crc32

import pytest
from PIL import Image

from data.encoding.encoder import Encoder
from data.media.container import demuxed, probe
from data.sample_limits import OutOfMemory, SampleLimits
from data.sources.headers import read_headers
from data.types import ImageRef, MediaError, Sample, Turn, VideoRef
from tests.data import videos
from tests.data.conftest import POLICY


@pytest.fixture
def endless(tmp_path):
    """A film that a broken download has filled up with 64 GiB of nothing, in which FFmpeg looks for the next frame."""
    path = videos.write(tmp_path / "endless.mkv", [i / 25 for i in range(50)])
    with path.open("r+b") as file:
        file.truncate(1 << 36)
    return VideoRef(str(path))


@pytest.fixture
def stuffed(tmp_path):
    """A picture with a private chunk of 200 MB before its pixels, which Pillow reads with the header."""
    Image.new("RGB", (32, 32)).save(tmp_path / "stuffed.png")
    whole, chunk = (tmp_path / "stuffed.png").read_bytes(), b"prVt" + bytes(200_000_000)
    stuffing = (len(chunk) - 4).to_bytes(4, "big") + chunk + crc32(chunk).to_bytes(4, "big")
    (tmp_path / "stuffed.png").write_bytes(whole[:33] + stuffing + whole[33:])
    return ImageRef(str(tmp_path / "stuffed.png"))


def test_a_header_that_takes_too_long_is_left_out_and_the_others_are_not(endless, clip):
    begin = time.monotonic()
    found = read_headers([endless, VideoRef(str(clip)), endless], SampleLimits(seconds=0.3))
    assert "took longer than data.sample_seconds=0.3" in str(found[endless])
    assert found[VideoRef(str(clip))] == probe(VideoRef(str(clip))) and time.monotonic() - begin < 20


def test_a_call_of_the_decoder_that_does_not_come_back_is_interrupted(endless, processor):
    film = Sample("film", (Turn("user", (endless, "What?")), Turn("assistant", ("nothing",))))
    begin = time.monotonic()
    with pytest.raises(MediaError, match=r"took longer than data\.sample_seconds"):
        Encoder(processor, POLICY, limits=SampleLimits(seconds=0.3)).encode(film)
    assert time.monotonic() - begin < 20


def forked(function, *arguments):
    """What it returns in a process of its own, and by how many MiB that grew at most."""
    with get_context("fork").Pool(1) as pool:
        return pool.apply(_grown, (function, *arguments))


def _grown(function, *arguments):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = function(*arguments)
    return found, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def test_a_header_that_takes_too_much_memory_is_left_out_and_those_beside_it_are_not(stuffed, clip):
    refs = [stuffed, VideoRef(str(clip))]
    found, grown = forked(read_headers, refs, SampleLimits(gib=0.06))
    assert isinstance(found[stuffed], OutOfMemory) and "data.sample_gib" in str(found[stuffed])
    assert found[refs[1]] == probe(refs[1]) and grown < 300  # of 400
    assert read_headers(refs, SampleLimits())[stuffed] == (32, 32)


def test_threads_start_under_the_smallest_limit(clip, tmp_path):
    refs = [VideoRef(str(shutil.copy(clip, tmp_path / f"{i}.mp4"))) for i in range(40)]
    found, _ = forked(read_headers, refs, SampleLimits(gib=1e-6))
    assert found.keys() == set(refs)


def test_a_film_is_never_held_whole(tmp_path):
    film = VideoRef(
        str(videos.write(tmp_path / "raw.mkv", [i / 25 for i in range(200)], codec="rawvideo", size=(480, 640)))
    )
    packets, grown = forked(demuxed, film)
    assert len(packets.ticks_P) == 200 and grown < 20  # of 92 MB
