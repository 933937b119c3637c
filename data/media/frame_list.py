"""Loads videos given as lists of pictures. All pictures are used, because servers do not sample such lists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data.media.container import VideoInfo
from data.media.images import load_image, probe_image
from data.sample_limits import check_decoded_size, remaining
from data.types import Clip, FrameList, ImageRef, MediaError, VideoRef

MILLISECONDS = 1000.0  # per second; servers are given timestamps of frames as integer milliseconds


def probe_frames(ref: VideoRef, frames: FrameList) -> VideoInfo:
    """The frame size, from the headers of the pictures; `with_rate` adds rate and duration.

    Raises MediaError if a picture is missing, unreadable, or differs in size.
    """
    sizes = []
    for picture in frames.pictures:
        remaining()  # raises SampleTimeout after the deadline
        sizes.append(probe_image(picture))
        if sorted(sizes[-1]) != sorted(sizes[0]):  # sides may be swapped by EXIF rotation
            raise _size_mismatch(picture, sizes[-1], sizes[0])
    (height, width), count = sizes[0], len(sizes)
    return VideoInfo(0.0, 0.0, width, height, count, count)


def with_rate(header: VideoInfo, frames: FrameList, fps: float) -> VideoInfo:
    """The header with the frame rate and duration that a server is given."""
    _, rate, total = _timeline(frames, fps)
    return replace(header, fps=rate, duration=total / rate)


def list_indices(ref: VideoRef, frames: FrameList, fps: float, max_frames: int) -> np.ndarray:
    """[T] int64 index of every picture at the frame rate that a server is given.

    Raises MediaError for more than `max_frames` pictures, or too few for a temporal grid.
    """
    count = len(frames.pictures)
    if count > max_frames:
        raise MediaError(
            f"{ref.path}: {count} frames exceed data.max_frames={max_frames}; shorten the list or raise it"
        )
    if count < 2:
        raise MediaError(f"{ref.path}: one frame does not fill a temporal grid; give it as an image")
    return _timeline(frames, fps)[0]


def load_frames(ref: VideoRef, frames: FrameList, fps: float, max_frames: int, max_bytes: int | None = None) -> Clip:
    """All pictures at source size, upright. Raises MediaError if one is missing or differs in size from the first."""
    indices_T = list_indices(ref, frames, fps, max_frames)
    first = load_image(frames.pictures[0], max_bytes)
    check_decoded_size(ref.path, len(indices_T) * first.size // 3, max_bytes)
    frames_THWC = np.empty((len(indices_T), *first.shape), np.uint8)
    for number, picture in enumerate(frames.pictures):
        image = load_image(picture, max_bytes) if number else first
        if image.shape != first.shape:
            raise _size_mismatch(picture, image.shape, first.shape)
        frames_THWC[number] = image
    _, rate, total = _timeline(frames, fps)
    times_T = indices_T / rate if frames.times is None else np.array(frames.times)
    return Clip(frames_THWC, times_T, indices_T, rate, total, total / rate)


def _size_mismatch(picture: ImageRef, size: tuple[int, ...], first: tuple[int, ...]) -> MediaError:
    """The error for a picture of another (height, width, ...) than the first."""
    return MediaError(
        f"{picture.path}: is {size[1]}x{size[0]}, the first frame of its video is {first[1]}x{first[0]}; "
        "give all frames one size"
    )


def _timeline(frames: FrameList, fps: float) -> tuple[np.ndarray, float, int]:
    """([T] index of each picture, indices per second, total number of indices), as a server is given them.

    index / rate is the timestamp of a picture. The last picture is shown for the mean interval between pictures.
    """
    count = len(frames.pictures)
    if frames.times is None:
        return np.arange(count), fps, count
    times_T = np.array(frames.times)
    duration = (times_T[-1] - times_T[0]) * count / (count - 1)
    return np.rint(times_T * MILLISECONDS).astype(np.int64), MILLISECONDS, round(duration * MILLISECONDS)
