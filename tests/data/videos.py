"""Real video files whose frames tell their own number: in binary, as eight black or white stripes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from data.media.container import VideoInfo


def write(path: Path, times: Sequence[float], *, codec: str = "libx264", size=(48, 64), **options: Any) -> Path:
    """A video with a frame shown at each of `times` (seconds); options are the codec's (g, bf, ...)."""
    tick = Fraction(1, 25 if path.suffix == ".avi" else 1000)  # an AVI knows one rate only
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        stream.codec_context.time_base = tick
        stream.options = {
            **({"crf": "5"} if codec.startswith("lib") else {}),
            **{key: str(value) for key, value in options.items()},
        }
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = round(time / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def picture(number: int, height: int, width: int) -> np.ndarray:
    stripes = np.arange(width) * 8 // width
    bright = (number >> stripes & 1).astype(np.uint8) * 255
    return np.broadcast_to(bright[None, :, None], (height, width, 3)).copy()


def numbers(frames_THWC: np.ndarray) -> list[int]:
    """Which frame of the file each of these is."""
    bright = frames_THWC.mean(axis=(1, 3)) > 127
    width = bright.shape[1]
    return [sum(int(row[(2 * bit + 1) * width // 16]) << bit for bit in range(8)) for row in bright]


def every(info: VideoInfo) -> np.ndarray:
    """A sampler: all frames."""
    return info.first + np.arange(info.readable)


def trim(source: Path, path: Path, start: float) -> Path:
    """The packets from the keyframe before `start` (seconds) on, those before it hidden: ffmpeg -ss START -c copy."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as container:
        stream = whole.streams.video[0]
        copied = container.add_stream_from_template(stream)
        tick = stream.time_base
        assert tick is not None
        aim = round(start / tick)
        whole.seek(aim, stream=stream)
        for packet in whole.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - aim, packet.dts - aim, copied
                container.mux(packet)
    return path
