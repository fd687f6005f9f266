"""Small pictures for the grid."""

from __future__ import annotations

import io
import os

import pytest
from PIL import Image

from lib_tuner.data import pictures
from lib_tuner.data.thumbnails import media_type, thumbnail


def shown(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.fixture
def photo(tmp_path):
    """400 x 200 px, left half red, right half blue."""
    picture = Image.new("RGB", (400, 200), (255, 0, 0))
    picture.paste((0, 0, 255), (200, 0, 400, 200))
    path = tmp_path / "photo.jpg"
    picture.save(path, quality=95)
    return path


def test_it_is_as_large_as_asked_and_looks_alike(photo):
    small = shown(thumbnail(photo, 128))
    assert small.size == (128, 64) and small.format == "JPEG"
    assert all(abs(a - b) < 12 for at, colour in (((20, 30), (255, 0, 0)), ((100, 30), (0, 0, 255))) for a, b in zip(small.getpixel(at), colour))


def test_a_side_is_rounded_up_and_nothing_is_enlarged(photo):
    assert shown(thumbnail(photo, 100)).size == (128, 64) and shown(thumbnail(photo, 129)).size == (256, 128)
    assert shown(thumbnail(photo, 9999)).size == (400, 200)


def test_it_stands_upright(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: what was left is at the top
    Image.open(photo).save(photo, exif=exif)
    small = shown(thumbnail(photo, 128))
    assert small.size == (64, 128) and small.getpixel((30, 20))[0] > 200 and small.getpixel((30, 100))[2] > 200


def test_what_is_transparent_stays_so(tmp_path):
    Image.new("RGBA", (300, 100), (9, 9, 9, 0)).save(tmp_path / "a.png")
    data = thumbnail(tmp_path / "a.png", 128)
    assert media_type(data) == "image/png" and shown(data).getpixel((5, 5))[3] == 0
    Image.new("RGBA", (300, 100), (9, 9, 9, 255)).save(tmp_path / "b.png")
    assert media_type(thumbnail(tmp_path / "b.png", 128)) == "image/jpeg"


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16", "1"])
def test_other_modes_are_shown(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    Image.new(mode, (300, 200), 0).save(path)
    assert shown(thumbnail(path, 128)).size == (128, 85)


def test_it_is_made_once_and_anew_when_the_picture_changed(photo, tmp_path, monkeypatch):
    cache, made = tmp_path / "side", []
    small = pictures.small
    monkeypatch.setattr(pictures, "small", lambda data, side: made.append(side) or small(data, side))
    first = thumbnail(photo, 128, cache)
    assert thumbnail(photo, 128, cache) == first and made == [128]
    Image.new("RGB", (100, 100), (0, 255, 0)).save(photo)
    os.utime(photo, ns=(1, 1))
    assert shown(thumbnail(photo, 128, cache)).size == (100, 100) and made == [128, 128]


def test_without_a_cache_that_can_be_written_it_is_shown_all_the_same(photo, tmp_path):
    (tmp_path / "side").write_text("a file where the folder should be")
    assert shown(thumbnail(photo, 128, tmp_path / "side")).size == (128, 64)


def test_what_cannot_be_shown_is_said(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="is no picture that Pillow can read"):
        thumbnail(tmp_path / "a.png", 128)
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    monkeypatch.setattr(pictures, "LARGEST", 1000)
    with pytest.raises(ValueError, match="megapixels"):
        thumbnail(tmp_path / "b.png", 128)
    with pytest.raises(OSError):
        thumbnail(tmp_path / "none.png", 128)
