"""A media file never opens another file or address."""

from __future__ import annotations

import io
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from data.media.container import probe
from data.media.decode import decode
from data.media.images import load_image, probe_image
from data.types import ImageRef, MediaError, Span, VideoRef
from tests.data import videos

REFERRING = {  # name -> text, in which {} is the file or address that it refers to
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:4,\n{}\n#EXT-X-ENDLIST\n",
    "list.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:4,\n{}\n#EXT-X-ENDLIST\n",
    "encrypted.m3u8": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{0}"\n#EXTINF:4,\n{0}\n#EXT-X-ENDLIST\n',
    "parts.ffconcat": "ffconcat version 1.0\nfile '{}'\n",
    "parts.mp4": "ffconcat version 1.0\nfile {}\n",
    "stream.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 0 RTP/AVP 96\na=control:{}\n",
    "manifest.mpd": '<MPD type="static"><Period><AdaptationSet><Representation id="0" bandwidth="9">'
    "<BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "script.avs": 'DirectShowSource("{}")\n',
    "redirect.asx": '<asx version="3.0"><entry><ref href="{}"/></entry></asx>',
    "reference.ref": "[Reference]\nRef1={}\n",
    "subtitles.idx": "# VobSub index file, v7 (do not modify this line!)\n# {}\n",
}


@pytest.fixture
def server():
    """The address of a server of this machine, and the requests that it has received."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", requests
        http.shutdown()


def stored(path: Path, content: bytes) -> list[VideoRef]:
    """The same content as a file, as a member of an archive and as bytes of a row."""
    path.write_bytes(content)
    archive = path.with_name("shard.tar")
    archive.write_bytes(b"\0" * 512 + content)
    span = Span(str(archive), 512, len(content))
    return [VideoRef(str(path)), VideoRef(f"{archive}/{path.name}", content=span), VideoRef(path.name, content=content)]


@pytest.mark.parametrize("name", REFERRING)
def test_a_file_that_refers_to_a_video_is_refused(clip, tmp_path, name):
    for ref in stored(tmp_path / name, REFERRING[name].format(clip).encode()):
        with pytest.raises(MediaError, match=name):
            probe(ref)
        with pytest.raises(MediaError, match=name):
            decode(ref, videos.every)


@pytest.mark.parametrize("name", REFERRING)
def test_a_file_that_refers_to_an_address_sends_no_request(server, tmp_path, name):
    address, requests = server
    for ref in stored(tmp_path / name, REFERRING[name].format(f"{address}/a.mp4").encode()):
        with pytest.raises(MediaError, match=name):
            probe(ref)
    assert not requests


def test_a_playlist_is_refused_with_its_reason(clip, tmp_path):
    (tmp_path / "a.m3u8").write_text(REFERRING["list.m3u8"].format(clip))
    with pytest.raises(MediaError, match="playlists and other files that refer to further files are refused"):
        probe(VideoRef(str(tmp_path / "a.m3u8")))


@pytest.mark.parametrize("name", ["concat:a.mp4", "data:video.mp4", "subfile,,start,0,end,0,,:a.mp4"])
def test_the_name_of_a_hostile_file_selects_no_protocol(clip, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"noise")
    (tmp_path / name).write_bytes(clip.read_bytes())
    assert probe(VideoRef(name)) == probe(VideoRef(str(clip)))


def test_the_name_of_a_hostile_file_selects_no_other_files(tmp_path):
    for number in range(1, 9):
        Image.new("RGB", (64, 48)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "frame%d.png").write_bytes(b"noise")
    with pytest.raises(MediaError, match="frame%d"):
        probe(VideoRef(str(tmp_path / "frame%d.png")))


def test_containers_of_single_files_are_not_taken_for_hostile_ones(tmp_path):
    codecs = {"webm": "libvpx", "avi": "mpeg4", "flv": "flv", "wmv": "wmv2", "ogv": "libtheora", "gif": "gif"}
    for suffix in ("mp4", "mov", "mkv", "m4v", "3gp", *codecs):
        codec = codecs.get(suffix, "libx264")
        path = encoded(tmp_path / f"a.{suffix}", codec)
        if path is not None:
            assert len(decode(VideoRef(str(path)), videos.every).frames_THWC) >= 20, suffix


def test_a_track_in_an_external_file_is_not_opened_for_a_hostile_movie(clip, tmp_path):
    (tmp_path / "other.mp4").write_bytes(clip.read_bytes())
    for ref in stored(tmp_path / "a.mov", with_external_track(clip.read_bytes(), "other.mp4")):
        with pytest.raises(MediaError, match=r"a\.mov"):
            decode(ref, videos.every)


def test_postscript_named_as_a_picture_starts_no_ghostscript(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    ref = ImageRef(str((tmp_path / "a.eps").rename(tmp_path / "a.jpg")))
    for read in (load_image, probe_image):
        with pytest.raises(MediaError, match=r"a\.jpg"):
            read(ref)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "MPO"])
def test_pictures_of_usual_formats_are_not_taken_for_hostile_ones(kind):
    stream = io.BytesIO()
    Image.new("RGB", (64, 32), "white").save(stream, kind)
    ref = ImageRef("a", stream.getvalue())
    assert probe_image(ref) == (32, 64)
    assert load_image(ref).mean() > 250


def with_external_track(movie: bytes, name: str) -> bytes:
    """The movie with a data reference that sends readers to the file `name` beside it, if they follow references."""
    path = f"/{name}".encode()
    entry = (
        b"alis" + bytes(4 + 10) + bytes(1 + 27 + 12) + bytes([len(name)]) + name.encode().ljust(63, b"\0") + bytes(16)
    )
    entry += struct.pack(">HH", 1, 1) + bytes(16) + struct.pack(">HH", 2, len(path)) + path + bytes(len(path) % 2)
    entry += struct.pack(">h", -1) * 2
    entry = struct.pack(">I", len(entry) + 4) + entry
    begin = movie.index(b"dref") + 12  # of its only entry, which says that the data are in the same file
    end = begin + struct.unpack(">I", movie[begin : begin + 4])[0]
    content = bytearray(movie[:begin] + entry + movie[end:])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        place = movie.rindex(box, 0, begin) - 4
        size = struct.unpack(">I", movie[place : place + 4])[0]
        content[place : place + 4] = struct.pack(">I", size + len(content) - len(movie))
    return bytes(content)


def encoded(path: Path, codec: str) -> Path | None:
    """A video of 25 frames, or None if this FFmpeg has no such encoder."""
    import av
    from av.codec.codec import UnknownCodecError

    try:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width = 48, 64
            stream.pix_fmt = {"gif": "rgb8"}.get(codec, "yuv420p")
            for number in range(25):
                frame = av.VideoFrame.from_ndarray(videos.picture(number, 48, 64), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except UnknownCodecError:
        return None
    return path
