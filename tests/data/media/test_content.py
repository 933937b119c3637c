"""Media within other files are decoded as they are, not unpacked."""

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.media.container import probe
from data.media.decode import decode
from data.media.images import load_image, probe_image
from data.types import ImageRef, MediaError, Span, VideoRef
from tests.data.videos import every


@pytest.fixture
def spans(clip, tmp_path):
    """A clip and a picture in an archive."""
    from PIL import Image

    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for file in (tmp_path / "a.png", clip):
            archive.add(file, file.name)
    with tarfile.open(tmp_path / "shard.tar") as archive:
        return {each.name: Span(str(tmp_path / "shard.tar"), each.offset_data, each.size) for each in archive}


def test_a_clip_in_an_archive_or_in_memory_is_the_one_in_the_file(clip, spans):
    plain = VideoRef(str(clip), 0.5, 3.0)
    frames = decode(plain, every).frames_THWC
    for content in (spans[clip.name], clip.read_bytes()):
        ref = replace(plain, path=clip.name, content=content)
        assert probe(ref) == probe(plain)
        assert np.array_equal(decode(ref, every).frames_THWC, frames)


def test_a_picture_in_an_archive_or_in_memory_is_the_one_in_the_file(spans, tmp_path):
    pixels = load_image(ImageRef(str(tmp_path / "a.png")))
    for content in (spans["a.png"], (tmp_path / "a.png").read_bytes()):
        assert np.array_equal(load_image(ImageRef("a.png", content)), pixels)
        assert probe_image(ImageRef("a.png", content)) == (4, 4)


@pytest.mark.parametrize("content", [b"", Span("/gone.tar", 0, 9), b"noise" * 99])
def test_content_that_cannot_be_used_is_a_media_error_in_one_line(content):
    for read, ref in ((probe, VideoRef("clip.mp4", content=content)), (load_image, ImageRef("a.png", content))):
        with pytest.raises(MediaError) as error:
            read(ref)
        assert "\n" not in str(error.value)


def test_a_span_that_reads_past_its_end_gives_nothing_of_the_next_member(clip, spans):
    cut = replace(spans[clip.name], size=spans[clip.name].size // 2)
    with pytest.raises(MediaError):
        decode(VideoRef("clip.mp4", content=cut), every)
    assert Path(cut.file).exists()
