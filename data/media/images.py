"""Image files -> pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from PIL import Image, ImageOps

from data.media.content import content
from data.sample_limits import check_decoded_size
from data.types import ImageRef, MediaError

# Formats that Pillow decodes by itself and servers open too. Others are refused: it hands PostScript to Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO")
ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises on bad files


def load_image(ref: ImageRef, max_bytes: int | None = None) -> np.ndarray:
    """[H, W, 3] uint8 RGB, turned upright, transparency over white. MediaError if the file is missing, damaged, or of
    more than `max_bytes` bytes."""
    with _opened(ref) as image:
        check_decoded_size(ref.path, image.height * image.width, max_bytes)
        return np.array(_on_white(_upright(image)).convert("RGB"))


def probe_image(ref: ImageRef) -> tuple[int, int]:
    """(height, width) by an image's header. MediaError if the file is missing or no image."""
    with _opened(ref) as image:
        return image.height, image.width


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data says; as it is stored if they cannot be read, as servers leave it."""
    with suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """Without transparency: servers composite pictures on white."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image
    layer = image.convert("RGBA")
    opaque = Image.new("RGB", layer.size, "white")
    opaque.paste(layer, mask=layer.getchannel("A"))
    return opaque


@contextmanager
def _opened(ref: ImageRef) -> Iterator[Image.Image]:
    """An opened image; every failure of Pillow inside becomes a MediaError."""
    with content(ref) as file:
        try:
            with Image.open(file, formats=FORMATS) as image:
                yield image
        except MediaError:
            raise
        except ERRORS as error:
            reason = " ".join(str(error).split())
            raise MediaError(f"{ref.path}: {reason}; make the image again or leave its rows out") from None
