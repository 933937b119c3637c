"""Decodes the sampled frames of a video, seeking to a keyframe when that is closer than reading on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorTrc, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from data.media.container import Packets, VideoInfo, demuxed, info, opened
from data.sample_limits import check_decoded_size
from data.types import Clip, MediaError, VideoRef

HDR_CURVES = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
# Unspecified, and the primaries that FFmpeg's scaler does not convert when the target specifies none.
KEPT_PRIMARIES = (
    ColorPrimaries.UNSPECIFIED,
    ColorPrimaries.BT709,
    ColorPrimaries.BT470M,
    ColorPrimaries.BT470BG,
    ColorPrimaries.SMPTE170M,
    ColorPrimaries.SMPTE240M,
)


def sampled_indices(ref: VideoRef, header: VideoInfo, sample: Callable[[VideoInfo], np.ndarray]) -> np.ndarray:
    """[T] int64 indices of the frames that `decode` returns. Raises MediaError if they do not fill a temporal grid."""
    indices_T = sample(header)
    if not len(indices_T):
        raise MediaError(
            f"{ref.path}: {header.readable} frame(s) do not fill a temporal grid; give it as an image or "
            "remove its rows"
        )
    return indices_T


def decode(ref: VideoRef, sample: Callable[[VideoInfo], np.ndarray], max_bytes: int | None = None) -> Clip:
    """Decode the frames that `sample` selects, at source size, upright.

    Raises MediaError if a frame is missing or damaged (it is never replaced by another), or if the frames exceed
    `max_bytes`.
    """
    packets = demuxed(ref)
    with opened(ref) as (container, stream):
        header = info(ref, container, stream)
        indices = sampled_indices(ref, header, sample)
        indices = indices[indices < len(packets.ticks_P)]
        check_decoded_size(ref.path, len(indices) * header.height * header.width, max_bytes)
        seconds_P = packets.seconds(float(stream.time_base or 0))
        _check_end(ref, seconds_P, header)
        frames_THWC = _pictures(ref, _frames(ref, container, stream, packets, indices), len(indices), max_bytes)
    times = seconds_P[indices] if packets.ordered else indices / header.fps
    return Clip(frames_THWC, times, indices, header.fps, header.frames, header.duration)


def _frames(
    ref: VideoRef, container: InputContainer, stream: VideoStream, packets: Packets, indices: np.ndarray
) -> Iterator[VideoFrame]:
    if packets.ordered:
        return _Reader(ref, container, stream, packets).frames(indices)
    return _counted(container, stream, set(indices.tolist()))


def _counted(container: InputContainer, stream: VideoStream, indices: set[int]) -> Iterator[VideoFrame]:
    """The selected frames, by decoding all frames and counting them in output order, as servers do."""
    left = len(indices)
    for number, frame in enumerate(container.decode(stream)):
        if number in indices:
            yield frame
            left -= 1
        if not left:
            return


class _Reader:
    """Reads selected frames of one video in order, by decoding on, or by a seek if a keyframe is closer."""

    def __init__(self, ref: VideoRef, container: InputContainer, stream: VideoStream, packets: Packets) -> None:
        self.ref, self.container, self.stream, self.packets = ref, container, stream, packets
        self.keys = packets.ticks_P[packets.keys_P]
        self.selected_ticks: set[int] = set()
        self.decoded = self._decoded()
        self.last: int | None = None  # tick of the last frame read

    def frames(self, indices: np.ndarray) -> Iterator[VideoFrame]:
        """The frames at these indices, in order. Raises MediaError if one cannot be decoded."""
        ticks: Sequence[int] = self.packets.ticks_P[indices].tolist()
        self.selected_ticks = set(ticks)
        for tick in ticks:
            yield self._approach(tick) or self._read_on(tick)

    def _approach(self, tick: int) -> VideoFrame | None:
        """Seek to the nearest keyframe before `tick`, or to an earlier one if the seek went too far.

        Returns the frame if the seek landed on it.
        """
        nearest = int(np.searchsorted(self.keys, tick, "right")) - 1
        if self.keys[nearest] <= (self.keys[0] if self.last is None else self.last):
            return None
        for key in (*self.keys[max(nearest - 1, 0) : nearest + 1].tolist()[::-1], self.keys[0]):
            self.container.seek(int(key), stream=self.stream)
            self.decoded = self._decoded()
            frame = next(self.decoded, None)
            if frame is not None and frame.pts is not None and frame.pts <= tick:
                self.last = frame.pts
                return frame if frame.pts == tick else None
        raise self._missing(tick)

    def _read_on(self, tick: int) -> VideoFrame:
        for frame in self.decoded:
            self.last = frame.pts
            if self.last is None or self.last >= tick:
                break
        if self.last != tick:
            raise self._missing(tick)
        return frame

    def _decoded(self) -> Iterator[VideoFrame]:
        """All frames from here on but those that nobody wants and that no other frame builds on."""
        context = self.stream.codec_context
        for packet in self.container.demux(self.stream):
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in self.selected_ticks else "NONREF"
            yield from packet.decode()

    def _missing(self, tick: int) -> MediaError:
        at = float((tick - self.packets.ticks_P[0]) * (self.stream.time_base or 0))
        return MediaError(
            f"{self.ref.path}: its frame at {at:.2f} s cannot be decoded; download it again or remove its rows"
        )


def _check_end(ref: VideoRef, seconds_P: np.ndarray, header: VideoInfo) -> None:
    """Raise MediaError if the frames end well before the duration in the header: the file is truncated."""
    end = float(seconds_P[-1]) + 1 / header.fps if len(seconds_P) else 0.0
    if header.duration - end > max(0.5, 3 / header.fps, 0.02 * header.duration):
        raise MediaError(
            f"{ref.path}: its frames end at {end:.2f} s but its header says {header.duration:.2f} s (truncated or "
            "damaged?); download it again or remove its rows"
        )


def _pictures(ref: VideoRef, frames: Iterator[VideoFrame], count: int, max_bytes: int | None) -> np.ndarray:
    """The frames as one array: uint8 RGB [T, H, W, 3], upright."""
    pictures_THWC = np.empty((0, 0, 0, 3), np.uint8)
    convert = VideoReformatter()
    number = 0
    for number, frame in enumerate(frames, 1):
        _check_frame(ref, frame, number)
        picture = _picture(convert, frame)
        if number == 1:  # one array, filled in place: stacking a list would hold every frame twice
            # Checked again, because headers may state a smaller size.
            check_decoded_size(ref.path, count * picture.size // 3, max_bytes)
            pictures_THWC = np.empty((count, *picture.shape), np.uint8)
        elif picture.shape != pictures_THWC.shape[1:]:
            raise MediaError(f"{ref.path}: the frame size changes at sampled frame {number}; re-encode it")
        pictures_THWC[number - 1] = picture
    if number < count:
        raise MediaError(f"{ref.path}: {count - number} of its frames cannot be decoded; download it again")
    return pictures_THWC


def _check_frame(ref: VideoRef, frame: VideoFrame, number: int) -> None:
    if frame.is_corrupt:
        raise MediaError(f"{ref.path}: its sampled frame {number} is damaged; download it again or remove its rows")
    if frame.interlaced_frame:
        raise MediaError(f"{ref.path}: is interlaced, which servers' OpenCV garbles; deinterlace it (ffmpeg -vf yadif)")


def _picture(convert: VideoReformatter, frame: VideoFrame) -> np.ndarray:
    """uint8 RGB [H, W, 3], upright, scaled with the settings of servers' OpenCV, because others round differently."""
    picture = convert.reformat(
        frame,
        format="bgr24",
        interpolation=Interpolation.BICUBIC,
        dst_color_trc=ColorTrc.BT709 if frame.color_trc in HDR_CURVES else None,
        dst_color_primaries=None if frame.color_primaries in KEPT_PRIMARIES else ColorPrimaries.BT709,
        threads=1,
    ).to_ndarray()[..., ::-1]
    return np.rot90(picture, round(frame.rotation / 90)) if frame.rotation else picture
