import pytest
from PIL import Image

from data.media.images import load_image, probe_image
from data.types import ImageRef, MediaError


def test_images_are_rgb_and_upright(tmp_path):
    image = Image.new("L", (30, 20), 128)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "a.jpg", exif=exif)
    assert load_image(ImageRef(str(tmp_path / "a.jpg"))).shape == (30, 20, 3)
    assert probe_image(ImageRef(str(tmp_path / "a.jpg"))) == (20, 30)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-300])
    with pytest.raises(MediaError, match=r"cut\.jpg"):
        load_image(ImageRef(str(tmp_path / "cut.jpg")))
