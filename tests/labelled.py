"""Pictures with and without a defect, made from photographs that scikit-image and scikit-learn bring and from drawings, for precision and recall of the checks."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

SIDE = 400  # px, longest shorter side: enough for every check, and tests stay short
Labelled = Iterator[tuple[str, Image.Image, bool]]  # name, picture, whether it has the defect


@lru_cache(maxsize=None)
def photo(name: str) -> Image.Image:
    package, inner = ("sklearn", "datasets/images") if name in ("china.jpg", "flower.jpg") else ("skimage", "data")
    found = find_spec(package)  # not imported, which takes seconds
    if found is None:
        pytest.skip(f"the photographs of {package} are not in this Python")
    folder = Path(found.submodule_search_locations[0]) / inner
    image = Image.open(folder / name).convert("RGB")
    return image.resize((image.width * SIDE // image.height, SIDE), Image.Resampling.LANCZOS) if image.height > SIDE else image


def photos() -> dict[str, Image.Image]:
    """A person, a dark sky, fur, still life, a telescope's and an eye's picture, roofs, a flower before a soft background."""
    names = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "retina.jpg", "china.jpg", "flower.jpg")
    return {name.partition(".")[0]: photo(name) for name in names}


def drawing(seed: int, size: tuple[int, int] = (512, 512)) -> Image.Image:
    """A figure of flat colours with dark lines before a plain or graded ground, as cartoons are drawn; four times as large at first, for smooth lines."""
    chance = random.Random(seed)
    w, h = size[0] * 2, size[1] * 2
    image = graded(seed, (w, h)) if seed % 2 else Image.new("RGB", (w, h), tuple(chance.randrange(120, 256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(9):
        x, y, r = chance.randrange(w), chance.randrange(h), chance.randrange(w // 20, w // 5)
        fill = tuple(chance.randrange(256) for _ in range(3))
        (draw.ellipse if chance.random() < 0.6 else draw.rectangle)([x - r, y - r, x + r, y + r], fill=fill, outline=(20, 20, 20), width=6)
    return image.resize(size, Image.Resampling.LANCZOS)


def graded(seed: int, size: tuple[int, int] = (512, 512)) -> Image.Image:
    """Two colours that run into each other, from above to below or from left to right."""
    chance = random.Random(seed)
    ramp = Image.linear_gradient("L") if seed % 3 else Image.linear_gradient("L").transpose(Image.Transpose.ROTATE_90)
    one, other = (tuple(chance.randrange(256) for _ in range(3)) for _ in range(2))
    return Image.composite(Image.new("RGB", size, one), Image.new("RGB", size, other), ramp.resize(size))


def noisy(image: Image.Image, sigma: float) -> Image.Image:
    noise = Image.merge("RGB", [Image.effect_noise(image.size, sigma) for _ in range(3)])
    return ImageChops.add(image, noise, 1, -128)


def lit(image: Image.Image, light: float = 1.0, contrast: float = 1.0) -> Image.Image:
    return ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(light)).enhance(contrast)


def jpeg(image: Image.Image, quality: int, **more: object) -> Image.Image:
    """The picture as JPEG leaves it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **more)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def on(ground: tuple[int, int, int], image: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """The picture with bars of these widths."""
    sheet = Image.new("RGB", (image.width + left + right, image.height + top + bottom), ground)
    sheet.paste(image, (left, top))
    return sheet


def moved(image: Image.Image) -> Image.Image:
    """As a camera that moved 15 px sideways blurs it: the mean of 16 copies."""
    for shift in (1, 2, 4, 8):
        image = Image.blend(image, ImageChops.offset(image, shift, 0), 0.5)
    return image.crop((15, 0, image.width, image.height))


def soft_background(image: Image.Image, part: float, sigma: float) -> Image.Image:
    """A sharp oval over this part of both sides, all else out of focus."""
    mask = Image.new("L", image.size, 0)
    w, h = image.size
    ImageDraw.Draw(mask).ellipse([w * (1 - part) / 2, h * (1 - part) / 2, w * (1 + part) / 2, h * (1 + part) / 2], fill=255)
    return Image.composite(image, image.filter(ImageFilter.GaussianBlur(sigma)), mask.filter(ImageFilter.GaussianBlur(4)))
