"""Image files -> pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from data.media.content import content
from data.sample_limits import check_room
from data.types import ImageRef, MediaError

ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises on bad files


def load_image(ref: ImageRef, room: int | None = None) -> np.ndarray:
    """[H, W, 3] uint8 RGB, turned upright. MediaError if the file is missing, damaged, or of more than `room` bytes."""
    with _opened(ref) as image:
        check_room(ref.path, image.height * image.width, room)
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def probe_image(ref: ImageRef) -> tuple[int, int]:
    """(height, width) by an image's header. MediaError if the file is missing or no image."""
    with _opened(ref) as image:
        return image.height, image.width


@contextmanager
def _opened(ref: ImageRef) -> Iterator[Image.Image]:
    """An opened image; every failure of Pillow inside becomes a MediaError."""
    with content(ref) as file:
        try:
            with Image.open(file) as image:
                yield image
        except MediaError:
            raise
        except ERRORS as error:
            reason = " ".join(str(error).split())
            raise MediaError(f"{ref.path}: {reason}; make the image again or leave its rows out") from None
