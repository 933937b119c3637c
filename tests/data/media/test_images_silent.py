"""Pictures are read as servers read them: transparency over white, turned upright, whatever their mode."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from data.media.images import load_image
from data.types import ImageRef


def loaded(image: Image.Image, kind: str = "PNG", **options) -> np.ndarray:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return load_image(ImageRef("a", stream.getvalue()))


def half_transparent(mode: str) -> Image.Image:
    """Black, its right half transparent."""
    image = Image.new("RGBA", (8, 4), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (4, 0, 8, 4))
    return image.convert(mode) if mode != "P" else image.quantize()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_silently_black_before_is_white(mode, kind):
    image = half_transparent("RGBA" if kind != "PNG" else mode if mode != "PA" else "LA")
    pixels = loaded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert (pixels[:, :4] == 0).all() and (pixels[:, 4:] == 255).all()


@pytest.mark.parametrize(
    ("image", "key"), [(Image.new("L", (4, 4), 7), 7), (Image.new("RGB", (4, 4), (1, 2, 3)), (1, 2, 3))]
)
def test_a_transparent_colour_is_not_silently_opaque(image, key):
    assert (loaded(image, transparency=key) == 255).all()


def test_half_transparency_is_mixed_with_white_not_silently_dropped():
    pixels = loaded(Image.new("RGBA", (4, 4), (100, 0, 0, 128)))
    assert pixels[0, 0].tolist() == [177, 127, 127]


def test_a_transparent_picture_is_turned_too_not_silently_left():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    pixels = loaded(half_transparent("RGBA"), exif=exif)
    assert pixels.shape == (8, 4, 3)
    assert (pixels[:4] == 0).all() and (pixels[4:] == 255).all()


def test_unreadable_orientation_silently_keeps_the_picture_as_stored():
    assert loaded(Image.new("RGB", (8, 4)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff").shape == (4, 8, 3)


@pytest.mark.parametrize(
    ("image", "kind", "level"),
    [
        (Image.fromarray(np.full((4, 4), 65535, np.uint16)), "PNG", 255),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "JPEG", 255),
        (Image.new("1", (4, 4), 1), "PNG", 255),
    ],
)
def test_modes_without_transparency_are_not_silently_changed(image, kind, level):
    pixels = loaded(image, kind)
    assert pixels.shape == (4, 4, 3) and (pixels == level).all()
