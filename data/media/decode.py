"""Media files -> pixels. The only file that imports the video decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image, ImageOps

from data.media.frames import FramePolicy, frame_times
from data.types import Clip, ImageRef, MediaError, VideoRef

REORDER = 4  # frames by which decoding order may run ahead of showing order (B-frames)
BLIND = 10.0  # seconds worth a seek where the file has no index to tell
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises on bad files


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header says of the whole file, whatever segment the reference names."""

    duration: float  # seconds
    fps: float  # average
    width: int  # as stored: a rotated video is turned when decoded
    height: int
    frames: int


def probe(ref: VideoRef) -> VideoInfo:
    """The header of a video; nothing is decoded. MediaError if the file or its segment cannot be used."""
    with _opened(ref) as (_, _, info):
        _segment(ref, info)
        return info


def wanted_times(ref: VideoRef, info: VideoInfo, policy: FramePolicy, temporal_patch: int = 2) -> np.ndarray:
    """Seconds [T] at which `decode` looks for frames, by the header; a video of variable rate may give fewer."""
    start, end = _segment(ref, info)
    times = start + frame_times(end - start, info.fps, policy, temporal_patch)
    if not len(times):
        raise MediaError(
            f"{ref.path}: has fewer frames from {start:g} to {end:g} s than the {temporal_patch} of a temporal grid; "
            "give it as an image or leave its rows out"
        )
    return times


def decode(ref: VideoRef, policy: FramePolicy, temporal_patch: int = 2) -> Clip:
    """The frames `policy` wants, at source size, with the times at which they were really shot.

    A frame is the one on screen at its wanted time and is given once, so a video of variable rate may give fewer than
    wanted, though always a multiple of `temporal_patch`. MediaError where frames are missing or damaged: none ever
    takes another's place.
    """
    with _opened(ref) as (container, stream, info):
        start, end = _segment(ref, info)
        wanted = wanted_times(ref, info, policy, temporal_patch)
        shots = _Reader(container, stream, info).frames_at(wanted)
        times, frames_THWC = _pictures(ref, shots, len(wanted))
    keep = whole_grids(times, temporal_patch)
    if len(keep) == 0:
        raise MediaError(
            f"{ref.path}: has {len(times)} frame(s) from {start:g} to {end:g} s, fewer than the {temporal_patch} of "
            "a temporal grid; give it as an image or leave its rows out"
        )
    kept_THWC = frames_THWC if len(keep) == len(frames_THWC) else frames_THWC[keep]
    return Clip(kept_THWC, times[keep], info.fps, info.duration)


def load_image(ref: ImageRef) -> np.ndarray:
    """[H, W, 3] uint8 RGB, turned upright. MediaError if the file is missing or damaged."""
    with _image(ref) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def probe_image(ref: ImageRef) -> tuple[int, int]:
    """(height, width) by an image's header. MediaError if the file is missing or no image."""
    with _image(ref) as image:
        return image.height, image.width


def whole_grids(times: np.ndarray, temporal_patch: int) -> np.ndarray:
    """Indices to keep so that their number is a multiple of `temporal_patch`: the most crowded inner ones go."""
    keep = np.arange(len(times))
    while len(keep) % temporal_patch:
        crowd = np.diff(times[keep])[:-1] + np.diff(times[keep])[1:]  # seconds between an inner frame's neighbours
        keep = np.delete(keep, 1 + crowd.argmin()) if len(crowd) else keep[:0]
    return keep


class _Reader:
    """A place in one video that moves forward: by reading on, or by a seek where a keyframe lies nearer."""

    def __init__(self, container: InputContainer, stream: VideoStream, info: VideoInfo) -> None:
        self.container, self.stream, self.info = container, stream, info
        self.tick = float(stream.time_base or 0)
        self.origin = stream.start_time or 0
        self.aim = 0.0  # seconds: what leaves the screen before is on nobody's way
        self.skipped = False  # whether the decoder was let off anything since the last seek
        self.frames = self._decoded()
        self.last: VideoFrame | None = None  # read last

    @property
    def place(self) -> float:
        """Seconds of the last frame read."""
        return self.seconds(self.last) if self.last is not None else 0.0

    def seconds(self, frame: VideoFrame | Packet) -> float:
        if frame.pts is None:
            raise MediaError(f"{self.container.name}: has frames without a time; remux it (ffmpeg -fflags +genpts)")
        return (frame.pts - self.origin) * self.tick

    def frames_at(self, wanted: np.ndarray) -> Iterator[tuple[float, VideoFrame]]:
        """(seconds, frame) of the frame on screen at each wanted time, each frame once."""
        given = -np.inf  # seconds of the last frame given
        for time in wanted:
            ended = not self._advance(time)
            if self.last is not None and self.place > given:
                given = self.place
                yield given, self.last
            if ended:
                return self._check_end()
        return None

    def _advance(self, time: float) -> bool:
        """Reads up to the frame on screen at `time`; False when the file ends before."""
        self.aim = time
        if (keyframe := self._keyframe(time)) is not None:
            self._approach(keyframe, time)
        if self._read_on(time):
            return True
        if self.skipped:  # the file's last frame may be one of those
            self.aim = 0.0
            self._approach(self._keyframe(self.place, anywhere=True), self.place)
            self._read_on(time)
        return False

    def _read_on(self, time: float) -> bool:
        while self.last is None or self._over(self.last) < time:
            if (frame := next(self.frames, None)) is None:
                return False
            self.last = frame
        return True

    def _approach(self, keyframe: int | None, time: float) -> None:
        """Seeks to `keyframe`, to the one before where that led behind `time`, at last to the file's start."""
        if keyframe is None or not self._land(keyframe, time):
            earlier = self._keyframe(time - REORDER / self.info.fps, anywhere=True)
            if earlier is None or not self._land(earlier, time):
                self._seek(self.origin)

    def _land(self, keyframe: int, time: float) -> bool:
        """Whether a seek to `keyframe` led to a frame that is not behind `time`, which is then the last read."""
        self._seek(keyframe)
        first = next(self.frames, None)
        if first is None or self.seconds(first) > time:
            return False
        self.last = first
        return True

    def _decoded(self) -> Iterator[VideoFrame]:
        """All frames from here on but those that are off the screen before `aim` and that no other frame builds on."""
        context = self.stream.codec_context
        for packet in self.container.demux(self.stream):
            passed = packet.pts is not None and self._over(packet) < self.aim
            context.skip_frame = "NONREF" if passed else "DEFAULT"
            self.skipped |= passed
            yield from packet.decode()

    def _over(self, frame: VideoFrame | Packet) -> float:
        """Seconds when a frame leaves the screen, less a half of a frame's time: containers round time stamps."""
        usual = 1 / self.info.fps
        held = (frame.duration or 0) * self.tick or usual
        return self.seconds(frame) + held - min(held, usual) / 2

    def _keyframe(self, time: float, *, anywhere: bool = False) -> int | None:
        """Ticks to seek to for `time`; None where reading on is as near, unless `anywhere`.

        The index is in order of decoding, in which a keyframe may stand some frames before its own time.
        """
        aim = self.origin + int(time / self.tick)
        here = self.origin + int(self.place / self.tick)
        index = self.stream.index_entries
        if len(index) and index[-1].timestamp >= aim:
            found = index.search_timestamp(aim)
            return index[found].timestamp if found >= 0 and (anywhere or index[found].timestamp > here) else None
        return aim if anywhere or time - self.place > BLIND else None

    def _seek(self, ticks: int) -> None:
        self.container.seek(ticks, stream=self.stream)
        self.frames, self.skipped = self._decoded(), False

    def _check_end(self) -> None:
        """MediaError if the file ended well before its header says: its tail is missing or unreadable."""
        duration, fps = self.info.duration, self.info.fps
        held = (self.last.duration or 0) * self.tick if self.last is not None else 0.0
        end = self.place + max(held, 1 / fps)
        if self.last is None or duration - end > max(0.5, 3 / fps, 0.02 * duration):
            raise MediaError(
                f"{self.container.name}: its frames end at {end if self.last else 0:.2f} s though its header says "
                f"{duration:.2f} s (cut off or damaged?); get the whole file or leave its rows out"
            )


@contextmanager
def _opened(ref: VideoRef) -> Iterator[tuple[InputContainer, VideoStream, VideoInfo]]:
    """The file's container, first moving picture and header; every decoder failure becomes a MediaError."""
    _check_file(ref.path)
    try:
        with av.open(ref.path) as container:
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                raise MediaError(f"{ref.path}: holds no video stream; leave its rows out")
            stream = streams[0]
            stream.thread_count = 1  # the loader's workers are the parallelism
            yield container, stream, _header(ref, container, stream)
    except UnicodeDecodeError:  # of PyAV before 19
        raise MediaError(f"{ref.path}: its metadata is not UTF-8; drop it (ffmpeg -map_metadata -1 -c copy)") from None
    except FFmpegError as error:
        raise MediaError(f"{ref.path}: {error.strerror}; get the whole file or leave its rows out") from None


def _header(ref: VideoRef, container: InputContainer, stream: VideoStream) -> VideoInfo:
    """MediaError where the file tells no duration, rate or size."""
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    if stream.duration is not None and stream.time_base is not None:
        duration = float(stream.duration * stream.time_base)
    else:
        duration = (container.duration or 0) / av.time_base
    width, height = stream.codec_context.width, stream.codec_context.height
    if not (duration > 0 and fps > 0 and width > 0 and height > 0):
        raise MediaError(
            f"{ref.path}: its header tells {duration:g} s, {fps:g} fps, {width}x{height}; remux it (ffmpeg -c copy)"
        )
    return VideoInfo(duration, fps, width, height, stream.frames or round(duration * fps))


def _segment(ref: VideoRef, info: VideoInfo) -> tuple[float, float]:
    """(start, end) in seconds, end held to the file's. MediaError if nothing lies between."""
    start = ref.start if ref.start is not None else 0.0
    end = min(ref.end, info.duration) if ref.end is not None else info.duration
    if not 0 <= start < end:
        raise MediaError(
            f"{ref.path}: no video from {start:g} to {end:g} s, the file has {info.duration:g} s; mend start and end"
        )
    return start, end


def _pictures(ref: VideoRef, shots: Iterator[tuple[float, VideoFrame]], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds [T] and uint8 RGB [T, H, W, 3], upright, of at most `most` shots, none behind the reference's end."""
    times: list[float] = []
    pictures_THWC = np.empty((0, 0, 0, 3), np.uint8)
    convert = VideoReformatter()
    for time, frame in shots:
        if ref.end is not None and time > ref.end:
            break
        if frame.is_corrupt:
            raise MediaError(f"{ref.path}: its frame at {time:.2f} s is damaged; fetch it again or leave its rows out")
        picture = convert.reformat(frame, format="rgb24", threads=1).to_ndarray()
        picture = np.rot90(picture, round(frame.rotation / 90)) if frame.rotation else picture
        if not times:  # filled in place: a list and a stack would hold every frame twice
            pictures_THWC = np.empty((most, *picture.shape), np.uint8)
        elif picture.shape != pictures_THWC.shape[1:]:
            raise MediaError(f"{ref.path}: its picture changes size at {time:.2f} s; encode it anew")
        pictures_THWC[len(times)] = picture
        times.append(time)
    return np.array(times), pictures_THWC[: len(times)]


@contextmanager
def _image(ref: ImageRef) -> Iterator[Image.Image]:
    """An opened image; every failure of Pillow inside becomes a MediaError."""
    _check_file(ref.path)
    try:
        with Image.open(ref.path) as image:
            yield image
    except IMAGE_ERRORS as error:
        reason = " ".join(str(error).split())
        raise MediaError(f"{ref.path}: {reason}; make the image again or leave its rows out") from None


def _check_file(path: str) -> None:
    """MediaError, in our words, for what no decoder needs to be asked about."""
    if not Path(path).is_file():
        raise MediaError(f"{path}: no such file; mend the row or data.media_root")
    if Path(path).stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty; fetch it again or leave its rows out")
