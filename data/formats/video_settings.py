"""Settings that a row makes for its own videos, with the keys of qwen-vl-utils, and videos given as pictures.

{"type": "video", "video": "a.mp4", "fps": 4, "max_frames": 64, "max_pixels": 200704}
{"type": "video", "video": ["0.jpg", "1.jpg"], "sample_fps": 2}         pictures, or a folder of them, as one video
{"type": "video", "video": "frames/7", "timestamps": [0, 0.5, 2.25]}    with the second of each
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from data.formats.keys import FRAMES, PIXELS, RESIZED
from data.formats.roots import Root
from data.types import FrameList, ImageRef, RowError, VideoSettings

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SHORTEST_GAP = 0.001  # seconds; servers are given the times of frames in milliseconds


def settings_of(fields: Mapping[str, Any], row: Mapping[str, Any], where: str, *, listed: bool) -> VideoSettings | None:
    """The settings in a medium's `fields`, or else in the `row`; None if there are none.

    `listed`: the video is given as pictures. Raises RowError for a value that servers do not support.
    """
    numbers = {key: _number(_setting(fields, row, key), key, where) for key in ("fps", "sample_fps", *FRAMES, *PIXELS)}
    settings = {key: value for key, value in numbers.items() if value is not None}
    if listed:
        _check_listed(settings, where)
        settings |= {"fps": settings.pop("sample_fps")} if "sample_fps" in settings else {}
    elif "sample_fps" in settings:
        raise RowError(f"{where}: sample_fps is the rate of a list of frames; use fps for a video file")
    if "nframes" in settings and (conflicts := settings.keys() & {"fps", "min_frames", "max_frames"}):
        raise RowError(f"{where}: nframes and {sorted(conflicts)[0]} contradict each other; remove one of them")
    return VideoSettings(**settings) if settings else None


def refuse_picture_settings(fields: Mapping[str, Any], where: str) -> None:
    """Raise RowError if `fields` set the size of an image, which the checkpoint's own processor decides."""
    for key in (*PIXELS, *RESIZED):
        if fields.get(key) is not None:
            raise RowError(f"{where}: {key} cannot be set for a single image; remove {key} or resize the file")


def picture_names(fields: Mapping[str, Any], root: Root, where: str) -> tuple[list[Any], str | None] | None:
    """(pictures, the name of their folder or None) of a video given as pictures; None for a video file."""
    values = [fields[key] for key in ("video", "path", "url", "frames") if fields.get(key) is not None]
    value = values[0] if values else None
    if fields.get("frames") is not None and (len(values) > 1 or not isinstance(value, list)):
        raise RowError(f"{where}: frames must be a list of pictures without a video file; use nframes")
    if isinstance(value, list):
        return value, None
    name = value.removeprefix("file://") if isinstance(value, str) else ""
    if not name or ":" in name or "\0" in name or (entries := root.entries(name, where)) is None:
        return None
    return pictures_of(name, entries, where), name


def pictures_of(folder: str, entries: Sequence[str], where: str) -> list[str]:
    """Names of the pictures among the entries of a folder, numbers sorted by value. Raises RowError without any."""
    names = sorted(filter(is_picture, entries), key=_natural)
    if not names:
        raise RowError(f"{where}: the folder {folder[:60]!r} holds no pictures; put the frames there or name a file")
    return [f"{folder.rstrip('/')}/{name}" for name in names]


def is_picture(entry: Any) -> bool:
    """True for the name of a picture, or a mapping that names one."""
    if isinstance(entry, Mapping):
        entry = next((entry[key] for key in ("image", "path", "url") if entry.get(key) is not None), None)
    return isinstance(entry, str) and entry.lower().endswith(PICTURES) and not os.path.basename(entry).startswith(".")  # noqa: PTH119


def frame_list(
    pictures: Sequence[ImageRef], fields: Mapping[str, Any], row: Mapping[str, Any], where: str
) -> FrameList:
    """The pictures with the row's timestamps. Raises RowError if the timestamps are invalid."""
    if not pictures:
        raise RowError(f"{where}: the video is an empty list; name its frames or remove it")
    times = _setting(fields, row, "timestamps")
    if times is None:
        return FrameList(tuple(pictures))
    if any(_setting(fields, row, key) is not None for key in ("fps", "sample_fps")):
        raise RowError(f"{where}: timestamps and a frame rate contradict each other; remove one of them")
    if not isinstance(times, list) or len(times) != len(pictures):
        raise RowError(f"{where}: timestamps must be a list of {len(pictures)} numbers, one for each frame")
    seconds = [_number(time, "timestamps", where, minimum=0.0) for time in times]
    if any(b - a < SHORTEST_GAP - 1e-9 for a, b in pairwise(seconds)):
        raise RowError(f"{where}: timestamps must rise by at least {SHORTEST_GAP:g} s from frame to frame; sort them")
    return FrameList(tuple(pictures), tuple(map(float, seconds)))


def _setting(fields: Mapping[str, Any], row: Mapping[str, Any], key: str) -> Any:
    return row.get(key) if fields.get(key) is None else fields[key]


def _check_listed(settings: dict[str, Any], where: str) -> None:
    for key in FRAMES:
        if key in settings:
            raise RowError(f"{where}: {key} cannot be set for a list of frames, all are used; shorten the list instead")
    if settings.keys() >= {"fps", "sample_fps"} and settings.pop("fps") != settings["sample_fps"]:
        raise RowError(f"{where}: fps and sample_fps of a list of frames differ; remove one of them")


def _number(value: Any, key: str, where: str, minimum: float | None = None) -> Any:
    """`value` as a number, an int for counts; None for None. Text that holds a number is accepted."""
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    is_count = key in (*FRAMES, *PIXELS)
    too_small = number < minimum if minimum is not None else number <= 0
    if not math.isfinite(number) or too_small or (is_count and number != int(number)):
        raise RowError(f"{where}: {key}={value!r:.40}; give a positive {'whole number' if is_count else 'number'}")
    return int(number) if is_count else number


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that orders frame2 before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
