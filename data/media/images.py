"""Loads image files as pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from PIL import Image, ImageOps

from data.media.content import content
from data.sample_limits import check_decoded_size
from data.types import ImageRef, MediaError

# Formats that Pillow decodes by itself and servers open too. Others are refused, as
# Pillow passes PostScript to Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO")
ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises on bad files


def load_image(ref: ImageRef, max_bytes: int | None = None) -> np.ndarray:
    """uint8 RGB [H, W, 3], rotated upright, with transparency composited on white.

    Raises MediaError if the file is missing, damaged, or larger than `max_bytes` when decoded.
    """
    with _opened(ref) as image:
        check_decoded_size(ref.path, image.height * image.width, max_bytes)
        return np.array(_on_white(_upright(image)).convert("RGB"))


def probe_image(ref: ImageRef) -> tuple[int, int]:
    """(height, width) from the header of an image. Raises MediaError if the file is missing or not an image."""
    with _opened(ref) as image:
        return image.height, image.width


def _upright(image: Image.Image) -> Image.Image:
    """The image rotated as its EXIF data says; unchanged if that is unreadable, as on servers."""
    with suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """The image without transparency, composited on white as on servers."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image
    layer = image.convert("RGBA")
    opaque = Image.new("RGB", layer.size, "white")
    opaque.paste(layer, mask=layer.getchannel("A"))
    return opaque


@contextmanager
def _opened(ref: ImageRef) -> Iterator[Image.Image]:
    """Open an image; errors of Pillow inside the block become MediaErrors."""
    with content(ref) as file:
        try:
            with Image.open(file, formats=FORMATS) as image:
                yield image
        except MediaError:
            raise
        except ERRORS as error:
            reason = " ".join(str(error).split())
            raise MediaError(f"{ref.path}: {reason}; re-create the image or remove its rows") from None
