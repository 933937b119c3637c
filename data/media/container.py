"""A video file's header and index: what can be known of its frames without decoding one."""

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

SEEK_BACK = 16  # frames before the end to which OpenCV seeks to see whether a header counts right
STREAMED = ("mpeg", "mpegts")  # FFmpeg's names of containers without an index
# Containers that hold all of their data, by FFmpeg's names; playlists, lists of files and descriptions of streams are
# not among them, since FFmpeg opens whatever they name.
CONTAINERS = (
    "mov", "matroska", "avi", "flv", "asf", "ogg", "gif", "apng", "mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc",
    "obu", "ivf", "mjpeg", "yuv4mpegpipe", "mxf", "nut", "wtv", "dv", "rm",
)  # fmt: skip
# No other address either, even if one of these could name it; a MOV's external tracks ("dref") stay closed.
OPTIONS = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file", "enable_drefs": "0"}
FEW = 0.5  # of the frames a header counts; with fewer readable ones a server samples a video's head only


@dataclass(frozen=True)
class VideoInfo:
    """What header and index say of a video, and of the stretch of it that a reference names."""

    duration: float  # seconds, of the file
    fps: float  # average
    width: int  # as stored: a rotated video is turned when decoded
    height: int
    frames: int  # of the stretch, as a server counts them
    readable: int  # of those, the ones that the file holds
    first: int = 0  # the stretch's first frame, counted from the file's


@dataclass(frozen=True)
class Packets:
    """A stream's frames (P) before decoding, sorted by time stamp; hidden and discarded ones are not among them."""

    ticks_P: np.ndarray  # int64
    keys_P: np.ndarray  # bool: whether decoding can start here
    ordered: bool  # whether the decoder gives frames in this order; otherwise they can only be counted

    def seconds(self, tick: float) -> np.ndarray:
        """[P] since the first frame."""
        return (self.ticks_P - self.ticks_P[:1]) * tick


def probe(ref: VideoRef) -> VideoInfo:
    """The header of a video; nothing is decoded. MediaError if the file or its stretch cannot be used."""
    with opened(ref) as (container, stream):
        return info(ref, container, stream)


@contextmanager
def opened(ref: VideoRef) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file's container and first moving picture; every decoder failure becomes a MediaError, but for time and
    memory that are used up (data.sample_limits)."""
    try:
        with content(ref) as file, av.open(_named(file), "r", options=OPTIONS, timeout=remaining()) as container:
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                raise MediaError(f"{ref.path}: holds no video stream; leave its rows out")
            if container.format.name in STREAMED:
                raise MediaError(
                    f"{ref.path}: servers' OpenCV cannot seek to the beginning of {container.format.long_name} and "
                    "sees other frames; write it anew (ffmpeg -c copy a.mp4)"
                )
            stream = streams[0]
            if getattr(stream, "codec_context", None) is None:  # which its annotation does not know of
                raise MediaError(f"{ref.path}: FFmpeg does not know its codec; encode it again (ffmpeg -c:v libx264)")
            stream.thread_count = 1  # the loader's workers are the parallelism
            yield container, stream
    except UnicodeDecodeError:  # of PyAV before 19
        raise MediaError(f"{ref.path}: its metadata is not UTF-8; drop it (ffmpeg -map_metadata -1 -c copy)") from None
    except MemoryError:
        raise
    except ExitError:  # FFmpeg's word for an interrupted call
        raise SampleTimeout from None
    except ArgumentError:  # what FFmpeg says of a format that is not among its whitelist
        raise MediaError(
            f"{ref.path}: not a video container that is opened here (playlists and other files that refer to further "
            "files are refused), or its header is damaged; convert it (ffmpeg -i ... a.mp4)"
        ) from None
    except FFmpegError as error:
        raise MediaError(f"{ref.path}: {error.strerror}; get the whole file or leave its rows out") from None


def _named(file: str | BinaryIO) -> str | BinaryIO:
    """A path as an address of a file, so that a colon in its name does not select another protocol."""
    return f"file:{file}" if isinstance(file, str) else file


def info(ref: VideoRef, container: InputContainer, stream: VideoStream) -> VideoInfo:
    """The stretch that `ref` names. MediaError where header or index leave open what a server would sample."""
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    length = (container.duration or 0) / av.time_base
    tick = float(stream.time_base or 0)
    duration = (stream.duration or 0) * tick or _tagged(stream) or length
    width, height = stream.codec_context.width, stream.codec_context.height
    if not fps > 0:
        raise MediaError(f"{ref.path}: its header has no frame rate, so servers refuse it; encode it again (ffmpeg -r)")
    if not (duration > 0 and width > 0 and height > 0):
        raise MediaError(
            f"{ref.path}: its header says {duration:g} s, {width}x{height}; write it anew (ffmpeg -c copy)"
        )
    header = stream.frames or floor((length or duration) * fps + 0.5)
    indexed = _indexed(stream)
    packets = indexed or demuxed(ref)
    total = _counted(header, fps, packets, tick)
    if indexed and total != header:  # an index is in order of decoding, too coarse where the header is in doubt
        total = _counted(header, fps, demuxed(ref), tick)
    first, frames, readable = _stretch(ref, total, duration, packets, tick)
    if readable < FEW * frames:
        raise MediaError(
            f"{ref.path}: its header counts {frames} frames and it holds {readable}, so servers sample its beginning "
            "only; encode it at a constant rate (ffmpeg -fps_mode cfr)"
        )
    return VideoInfo(duration, fps, width, height, frames, readable, first)


def demuxed(ref: VideoRef) -> Packets:
    """All frames of a file, which is read through once and never held whole."""
    shown: list[tuple[int | None, bool]] = []  # time stamp, keyframe
    hidden_key = False
    with opened(ref) as (container, stream):
        for packet in container.demux(stream):
            remaining()
            if packet.is_corrupt and packet.size:
                raise MediaError(f"{ref.path}: one of its frames is cut off or damaged; get the whole file")
            if packet.size and _is_shown(packet):
                shown.append((packet.pts, packet.is_keyframe))
            hidden_key |= bool(packet.size) and packet.is_keyframe and packet.is_discard
        reorders, kind = bool(stream.codec_context.has_b_frames), container.format.name
    ticks = [tick for tick, _ in shown if tick is not None]
    if len(set(ticks)) < len(shown):
        return Packets(np.arange(len(shown)), np.zeros(len(shown), bool), False)
    ticks_P, keys_P = np.array(ticks, np.int64), np.array([key for _, key in shown], bool)
    # Time stamps that contradict the codec were made up: by the container (AVI has none) or by whoever wrote it.
    ordered = reorders == bool((np.diff(ticks_P) < 0).any()) and not (reorders and kind == "avi")
    order = ticks_P.argsort()
    ordered = ordered and bool(keys_P[:1].all())
    if hidden_key:
        keys_P[order[:1]] = True  # decoding starts at the hidden keyframe, and this is the first frame that it shows
    return Packets(ticks_P[order], keys_P[order], ordered)


def _is_shown(packet: Packet) -> bool:
    hidden = packet.stream.codec_context.name == "vp8" and not memoryview(packet)[0] >> 4 & 1
    return not packet.is_discard and not hidden


def _indexed(stream: VideoStream) -> Packets | None:
    """By the index that some containers hold in memory, in order of decoding; None where some are missing or hidden."""
    entries = [entry for entry in stream.index_entries if entry.size]
    if not stream.frames or len(entries) < stream.frames - 1 or any(entry.is_discard for entry in entries):
        return None
    ticks_P = np.array([entry.timestamp for entry in entries], np.int64)
    return Packets(ticks_P, np.array([entry.is_keyframe for entry in entries], bool), False)


def _counted(total: int, fps: float, packets: Packets, tick: float) -> int:
    """Frames as vLLM counts them through OpenCV: the header's `total`, or what a seek to the end finds if it is less.

    The seek lands on a keyframe, whose number is guessed from its time; from there on frames are counted.
    """
    seconds_P = packets.seconds(tick)
    numbers_P = (seconds_P * fps + 0.5).astype(int)
    aim = max(total - SEEK_BACK, 0) / fps
    starts = np.flatnonzero(packets.keys_P & (seconds_P <= aim) & (numbers_P < total))
    if not len(starts):
        return total
    found = int(numbers_P[starts[-1]] + len(numbers_P) - starts[-1])
    return found if 0 < found < total - 1 else total


def _stretch(ref: VideoRef, total: int, duration: float, packets: Packets, tick: float) -> tuple[int, int, int]:
    """(first frame, frames, readable ones) of what `ref` names: from the frame on screen at its start to its end."""
    start = ref.start if ref.start is not None else 0.0
    end = min(ref.end, duration) if ref.end is not None else duration
    if not 0 <= start < end:
        raise MediaError(
            f"{ref.path}: no video from {start:g} to {end:g} s, the file has {duration:g} s; correct start and end"
        )
    if ref.start is None and ref.end is None:
        return 0, total, min(total, len(packets.ticks_P))
    seconds_P = packets.seconds(tick)
    first = max(int(np.searchsorted(seconds_P, start + tick, "right")) - 1, 0)
    stop = int(np.searchsorted(seconds_P, end - tick, "right")) if ref.end is not None else len(seconds_P)
    return first, stop - first, stop - first


def _tagged(stream: VideoStream) -> float:
    """Seconds by Matroska's tag of a stream, which may be shorter than the file's sound; 0 where there is none."""
    parts = stream.metadata.get("DURATION", "").split(":")
    try:
        hours, minutes, seconds = map(float, parts)
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds
