"""Broken media: mutations of small video files and pictures, and valid but extreme files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import av
import numpy as np
from PIL import Image

FOREIGN = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0AVI LIST", b"\x1a\x45\xdf\xa3", b"\0\0\0 ftypisom")
CODECS = {"mp4": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4"}


def rows(folder: Path, count: int) -> Path:
    """The path of a data file in `folder` with `count` media, one per row: the extremes, and mutated files."""
    intact = originals(folder)
    made = [make(folder / name) for name, make in EXTREMES.items()]
    for number in range(count - len(made)):
        source = intact[number % len(intact)]
        made.append(folder / f"{number}{source.suffix}")
        made[-1].write_bytes(mutated(source.read_bytes(), number))
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(_row(path)) + "\n" for path in made))
    return path


def originals(folder: Path) -> list[Path]:
    """Small intact files of the five formats."""
    made = [_film(128, 96, 50, codec, g="10")(folder / f"intact.{suffix}") for suffix, codec in CODECS.items()]
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8))
    for suffix in ("png", "jpg"):
        noise.save(folder / f"intact.{suffix}")
        made.append(folder / f"intact.{suffix}")
    return made


def mutated(content: bytes, number: int) -> bytes:
    """Mutation `number` of a file, in turn: flipped bits anywhere or in the header, truncation, another format's
    header."""
    rng, mutated_bytes = np.random.default_rng(number), np.frombuffer(content, np.uint8).copy()
    match number // 5 % 4:
        case 0 | 1 as head:
            places = rng.integers(0, 600 if head else len(mutated_bytes), rng.integers(1, 30))
            mutated_bytes[places % len(mutated_bytes)] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
            return mutated_bytes.tobytes()
        case 2:
            return content[: rng.integers(0, len(content))]
        case _:
            header = FOREIGN[rng.integers(len(FOREIGN))]
            return header + content[len(header) :]


def _picture(width: int, height: int, mode: str = "RGB") -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        Image.new(mode, (width, height)).save(path)
        return path

    return make


def _bomb(path: Path) -> Path:
    """A picture whose header announces 400 megapixels."""
    _picture(20, 20)(path)
    content = path.read_bytes()
    header = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + content[24:29]
    path.write_bytes(content[:12] + header + crc32(header).to_bytes(4, "big") + content[33:])
    return path


def _film(width: int, height: int, frames: int, codec: str = "libx264", **options: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(codec, rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for number in range(frames):
                picture = np.full((height, width, 3), 5 * number % 255, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        return path

    return make


EXTREMES: dict[str, Callable[[Path], Path]] = {
    "wide.png": _picture(2010, 10),
    "tall.jpg": _picture(10, 2010),
    "144_megapixels.png": _picture(12_000, 12_000, mode="1"),
    "bomb.png": _bomb,
    "8k_one_frame.mp4": _film(7680, 4320, 1, preset="ultrafast"),
    "8k.mp4": _film(7680, 4320, 2, preset="ultrafast"),
    "wide.mp4": _film(4096, 16, 8),
}


def _row(path: Path) -> dict[str, Any]:
    kind = "image" if path.suffix in (".png", ".jpg") else "video"
    turns = [{"from": "human", "value": f"<{kind}>What is it?"}, {"from": "gpt", "value": "broken"}]
    return {"id": path.name, kind: str(path), "conversations": turns}
