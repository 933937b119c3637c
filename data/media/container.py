"""Reads the header and index of a video file: everything that is known of its frames before decoding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import floor
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.error import ArgumentError, ExitError, FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from data.media.content import content
from data.sample_limits import SampleTimeout, remaining
from data.types import MediaError, VideoRef

SEEK_BACK = 16  # OpenCV checks the frame count of a header by seeking this many frames before the end
STREAMED = ("mpeg", "mpegts")  # FFmpeg's names of containers without an index
# Self-contained formats, by FFmpeg's names. Playlists, lists of files and stream descriptions are excluded, because
# FFmpeg would open any file or address that they name.
CONTAINERS = (
    "mov", "matroska", "avi", "flv", "asf", "ogg", "gif", "apng", "mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc",
    "obu", "ivf", "mjpeg", "yuv4mpegpipe", "mxf", "nut", "wtv", "dv", "rm",
)  # fmt: skip
# Further protection: local files only, and no external tracks of a MOV ("dref").
OPTIONS = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file", "enable_drefs": "0"}
MIN_READABLE = 0.5  # fraction of the frames a header counts; below it servers sample only the head of the video


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video, and of the segment of it that a reference names, from its header and index."""

    duration: float  # of the file, in seconds
    fps: float  # average
    width: int  # as stored; rotation is applied when decoding
    height: int
    frames: int  # of the segment, as a server counts them
    readable: int  # those of `frames` that the file really holds
    first: int = 0  # index in the file of the first frame of the segment


@dataclass(frozen=True)
class Packets:
    """The frames (P) of a stream before decoding, sorted by timestamp, without hidden and discarded ones."""

    ticks_P: np.ndarray  # int64
    keys_P: np.ndarray  # bool: True for a keyframe, where decoding can start
    ordered: bool  # True if the decoder outputs frames in this order; otherwise frames can only be counted

    def seconds(self, tick: float) -> np.ndarray:
        """[P] seconds since the first frame; `tick` is the time base."""
        return (self.ticks_P - self.ticks_P[:1]) * tick


def probe(ref: VideoRef) -> VideoInfo:
    """Read the header of a video without decoding. Raises MediaError if the file or its segment cannot be used."""
    with opened(ref) as (container, stream):
        return info(ref, container, stream)


@contextmanager
def opened(ref: VideoRef) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video file and its first video stream that is not a cover image.

    Errors of FFmpeg inside the block become MediaErrors, except SampleTimeout and MemoryError (data.sample_limits).
    """
    try:
        with content(ref) as file, av.open(_file_url(file), "r", options=OPTIONS, timeout=remaining()) as container:
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                raise MediaError(f"{ref.path}: contains no video stream; remove its rows")
            if container.format.name in STREAMED:
                raise MediaError(
                    f"{ref.path}: servers' OpenCV cannot seek to the beginning of {container.format.long_name} and "
                    "sees other frames; rewrite it (ffmpeg -c copy a.mp4)"
                )
            stream = streams[0]
            if getattr(stream, "codec_context", None) is None:  # possible, despite the annotation
                raise MediaError(f"{ref.path}: FFmpeg does not know its codec; re-encode it (ffmpeg -c:v libx264)")
            stream.thread_count = 1  # parallelism comes from the loader's workers
            yield container, stream
    except UnicodeDecodeError:  # of PyAV before 19
        raise MediaError(f"{ref.path}: its metadata is not UTF-8; drop it (ffmpeg -map_metadata -1 -c copy)") from None
    except MemoryError:
        raise
    except ExitError:  # raised by FFmpeg when a call times out
        raise SampleTimeout from None
    except ArgumentError:  # raised by FFmpeg for a format outside the whitelist
        raise MediaError(
            f"{ref.path}: not a supported video container (playlists and other files that refer to further files are "
            "refused), or its header is damaged; convert it (ffmpeg -i ... a.mp4)"
        ) from None
    except FFmpegError as error:
        raise MediaError(f"{ref.path}: {error.strerror}; download it again or remove its rows") from None


def _file_url(file: str | BinaryIO) -> str | BinaryIO:
    """A path as a file: URL, so that a colon in the path does not select another protocol."""
    return f"file:{file}" if isinstance(file, str) else file


def info(ref: VideoRef, container: InputContainer, stream: VideoStream) -> VideoInfo:
    """Properties of the segment that `ref` names.

    Raises MediaError if header and index do not determine which frames a server would sample.
    """
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    length = (container.duration or 0) / av.time_base
    tick = float(stream.time_base or 0)
    duration = (stream.duration or 0) * tick or _tagged_duration(stream) or length
    width, height = stream.codec_context.width, stream.codec_context.height
    if not fps > 0:
        raise MediaError(f"{ref.path}: its header has no frame rate, so servers refuse it; re-encode it (ffmpeg -r)")
    if not (duration > 0 and width > 0 and height > 0):
        raise MediaError(f"{ref.path}: its header says {duration:g} s, {width}x{height}; rewrite it (ffmpeg -c copy)")
    header = stream.frames or floor((length or duration) * fps + 0.5)
    indexed = _indexed(stream)
    packets = indexed or demuxed(ref)
    total = _server_frame_count(header, fps, packets, tick)
    if indexed and total != header:  # the index is in decoding order, too coarse if the header is wrong
        total = _server_frame_count(header, fps, demuxed(ref), tick)
    first, frames, readable = _segment(ref, total, duration, packets, tick)
    if readable < MIN_READABLE * frames:
        raise MediaError(
            f"{ref.path}: its header counts {frames} frames but it has {readable}, so servers sample only its "
            "beginning; encode it at a constant rate (ffmpeg -fps_mode cfr)"
        )
    return VideoInfo(duration, fps, width, height, frames, readable, first)


def demuxed(ref: VideoRef) -> Packets:
    """Packets of all frames, by reading through the file once with constant memory."""
    shown: list[tuple[int | None, bool]] = []  # (timestamp, is a keyframe)
    hidden_key = False
    with opened(ref) as (container, stream):
        for packet in container.demux(stream):
            remaining()
            if packet.is_corrupt and packet.size:
                raise MediaError(f"{ref.path}: one of its frames is truncated or damaged; download it again")
            if packet.size and _is_shown(packet):
                shown.append((packet.pts, packet.is_keyframe))
            hidden_key |= bool(packet.size) and packet.is_keyframe and packet.is_discard
        reorders, kind = bool(stream.codec_context.has_b_frames), container.format.name
    ticks = [tick for tick, _ in shown if tick is not None]
    if len(set(ticks)) < len(shown):
        return Packets(np.arange(len(shown)), np.zeros(len(shown), bool), False)
    ticks_P, keys_P = np.array(ticks, np.int64), np.array([key for _, key in shown], bool)
    # Timestamps that contradict the codec were invented: by the container format (AVI has none) or by its writer.
    ordered = reorders == bool((np.diff(ticks_P) < 0).any()) and not (reorders and kind == "avi")
    order = ticks_P.argsort()
    ordered = ordered and bool(keys_P[:1].all())
    if hidden_key:
        keys_P[order[:1]] = True  # decoding starts at the hidden keyframe; this is the first frame shown
    return Packets(ticks_P[order], keys_P[order], ordered)


def _is_shown(packet: Packet) -> bool:
    hidden = packet.stream.codec_context.name == "vp8" and not memoryview(packet)[0] >> 4 & 1
    return not packet.is_discard and not hidden


def _indexed(stream: VideoStream) -> Packets | None:
    """Packets from the container's index, in decoding order; None if it is incomplete or has hidden frames."""
    entries = [entry for entry in stream.index_entries if entry.size]
    if not stream.frames or len(entries) < stream.frames - 1 or any(entry.is_discard for entry in entries):
        return None
    ticks_P = np.array([entry.timestamp for entry in entries], np.int64)
    return Packets(ticks_P, np.array([entry.is_keyframe for entry in entries], bool), False)


def _server_frame_count(total: int, fps: float, packets: Packets, tick: float) -> int:
    """Frames as vLLM counts them through OpenCV: the header's `total`, or fewer if a seek to the end shows so.

    The seek lands on a keyframe, whose index is estimated from its timestamp; the frames after it are counted.
    """
    seconds_P = packets.seconds(tick)
    numbers_P = (seconds_P * fps + 0.5).astype(int)
    seek_seconds = max(total - SEEK_BACK, 0) / fps
    starts = np.flatnonzero(packets.keys_P & (seconds_P <= seek_seconds) & (numbers_P < total))
    if not len(starts):
        return total
    count = int(numbers_P[starts[-1]] + len(numbers_P) - starts[-1])
    return count if 0 < count < total - 1 else total


def _segment(ref: VideoRef, total: int, duration: float, packets: Packets, tick: float) -> tuple[int, int, int]:
    """(first frame, frames, readable frames) of a segment; it begins with the frame displayed at its start."""
    start = ref.start if ref.start is not None else 0.0
    end = min(ref.end, duration) if ref.end is not None else duration
    if not 0 <= start < end:
        raise MediaError(
            f"{ref.path}: invalid segment from {start:g} to {end:g} s of a {duration:g} s video; correct start and end"
        )
    if ref.start is None and ref.end is None:
        return 0, total, min(total, len(packets.ticks_P))
    seconds_P = packets.seconds(tick)
    first = max(int(np.searchsorted(seconds_P, start + tick, "right")) - 1, 0)
    stop = int(np.searchsorted(seconds_P, end - tick, "right")) if ref.end is not None else len(seconds_P)
    return first, stop - first, stop - first


def _tagged_duration(stream: VideoStream) -> float:
    """Seconds from the Matroska DURATION tag, which may be shorter than the audio; 0 without the tag."""
    parts = stream.metadata.get("DURATION", "").split(":")
    try:
        hours, minutes, seconds = map(float, parts)
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds
