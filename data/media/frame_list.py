"""Videos that are given as pictures -> pixels and times. No frame is left out: servers take such a list whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data.media.container import VideoInfo
from data.media.images import load_image, probe_image
from data.sample_limits import check_decoded_size, remaining
from data.types import Clip, FrameList, ImageRef, MediaError, VideoRef

MILLISECONDS = 1000.0  # per second: the rate at which servers are told the times of frames, as whole numbers


def probe_frames(ref: VideoRef, frames: FrameList) -> VideoInfo:
    """The frame size, from the headers of the pictures; `with_rate` adds rate and duration.

    Raises MediaError if a picture is missing, unreadable, or differs in size.
    """
    sizes = []
    for picture in frames.pictures:
        remaining()  # SampleTimeout if the sample's time is over
        sizes.append(probe_image(picture))
        if sorted(sizes[-1]) != sorted(sizes[0]):  # sides may be swapped: some may be turned by their EXIF data
            raise _other_size(picture, sizes[-1], sizes[0])
    (height, width), count = sizes[0], len(sizes)
    return VideoInfo(0.0, 0.0, width, height, count, count)


def with_rate(header: VideoInfo, frames: FrameList, fps: float) -> VideoInfo:
    """The header with the rate and duration that a server is told."""
    _, rate, total = _timeline(frames, fps)
    return replace(header, fps=rate, duration=total / rate)


def list_indices(ref: VideoRef, frames: FrameList, fps: float, most: int) -> np.ndarray:
    """[T] int64 index of every picture at the rate that a server is told.

    MediaError for more than `most` pictures, or too few for a temporal grid.
    """
    count = len(frames.pictures)
    if count > most:
        raise MediaError(
            f"{ref.path}: {count} frames are more than data.max_frames={most}; shorten the list or raise it"
        )
    if count < 2:
        raise MediaError(f"{ref.path}: one frame is fewer than a temporal grid; give it as an image")
    return _timeline(frames, fps)[0]


def load_frames(ref: VideoRef, frames: FrameList, fps: float, most: int, max_bytes: int | None = None) -> Clip:
    """All pictures at source size, upright. MediaError if one is missing, or of another size than the first."""
    indices_T = list_indices(ref, frames, fps, most)
    first = load_image(frames.pictures[0], max_bytes)
    check_decoded_size(ref.path, len(indices_T) * first.size // 3, max_bytes)
    frames_THWC = np.empty((len(indices_T), *first.shape), np.uint8)
    for number, picture in enumerate(frames.pictures):
        image = load_image(picture, max_bytes) if number else first
        if image.shape != first.shape:
            raise _other_size(picture, image.shape, first.shape)
        frames_THWC[number] = image
    _, rate, total = _timeline(frames, fps)
    times_T = indices_T / rate if frames.times is None else np.array(frames.times)
    return Clip(frames_THWC, times_T, indices_T, rate, total, total / rate)


def _other_size(picture: ImageRef, size: tuple[int, ...], first: tuple[int, ...]) -> MediaError:
    """For sizes as (height, width, ...)."""
    return MediaError(
        f"{picture.path}: is {size[1]}x{size[0]}, the first frame of its video is {first[1]}x{first[0]}; "
        "give all frames one size"
    )


def _timeline(frames: FrameList, fps: float) -> tuple[np.ndarray, float, int]:
    """([T] index of each picture, indices per second, number of indices), so that index / rate is a picture's time and
    the pictures make up their share of the indices, the last one shown for the mean time between two."""
    count = len(frames.pictures)
    if frames.times is None:
        return np.arange(count), fps, count
    times_T = np.array(frames.times)
    stretch = (times_T[-1] - times_T[0]) * count / (count - 1)
    return np.rint(times_T * MILLISECONDS).astype(np.int64), MILLISECONDS, round(stretch * MILLISECONDS)
