"""Checks of pictures: each on labelled pictures, with its precision and recall; what one look at a file tells.

`python -m pytest -s tests/test_audit.py -k labelled` prints the table.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
from labelled import Labelled, drawing, graded, jpeg, lit, moved, noisy, on, photo, photos, soft_background
from PIL import Image, ImageDraw, ImageFilter

from lib_tuner.data import measures
from lib_tuner.data.audit import CHECKS, Target, audit, look_at
from lib_tuner.data.look import Look, look

BLUR = ImageFilter.GaussianBlur


def bytes_of(image: Image.Image, kind: str = "PNG", **more: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"compress_level": 1} if kind == "PNG" else {}), **more)
    return buffer.getvalue()


def kinds(data: bytes, size: int = 512) -> set[str]:
    return {finding.kind for finding in audit({Path("x"): look(data)}, Target(size))}


# ---- labelled pictures: (name, bytes, whether it has the defect)


def scenes() -> dict[str, Image.Image]:
    return {**photos(), **{f"drawing {seed}": drawing(seed, (400, 400)) for seed in range(2)}}


def blur() -> Labelled:
    """Gaussian of several strengths, movement, enlarging; against sharp pictures in any light, grain, and soft backgrounds."""
    for name, image in scenes().items():
        yield f"{name} sharp", image, False
        yield f"{name} dark", lit(image, 0.35), False
        yield f"{name} sigma 2", image.filter(BLUR(2)), True
        yield f"{name} sigma 4", lit(image, 0.6).filter(BLUR(4)), True
        yield f"{name} grainy", noisy(image, 6) if name < "d" else noisy(image.filter(BLUR(2.5)), 1.5), name >= "d"
        yield f"{name} moved", moved(image, 13), True
        yield f"{name} enlarged", image.resize((image.width // 4, image.height // 4), Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC), True
    for name, image in photos().items():
        yield f"{name} portrait", soft_background(image, 0.4, 6), False
        yield f"{name} foggy", lit(image, 1.1, 0.4), False


def bars() -> Labelled:
    """Letterboxes, pillars, frames and single bars, also after JPEG; against skies, studios and figures on even grounds that reach the edges."""
    for number, (name, image) in enumerate(scenes().items()):
        hue = [(0, 0, 0), (255, 255, 255), (128, 128, 128), (12, 12, 14)][number % 4]
        wide = 8 + 7 * number
        yield f"{name} as it is", image, False
        yield f"{name} letterbox", jpeg(on(hue, image, 0, wide, 0, wide), 85), True
        yield f"{name} pillars", on(hue, lit(image, 0.5), wide, 0, wide, 0), True
        yield f"{name} frame", on(hue, image, wide, wide, wide, wide), True
        yield f"{name} bar", on(hue, image, 0, 0, 0, wide), True
    for seed in range(20):
        yield f"studio {seed}", studio(seed), False
    for seed, top in enumerate((20, 60, 120)):
        yield f"night {seed}", night(seed, top), False


def studio(seed: int) -> Image.Image:
    """A round or ragged thing cut out of a photograph on white or black, with room on all sides: what bars must not be taken for."""
    image = list(photos().values())[seed % 8].resize((512, 512))
    mask = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(mask)
    if seed % 2:
        draw.ellipse([60 + seed * 4, 50 + seed * 4, 450 - seed * 4, 460 - seed * 4], fill=255)
    else:
        draw.polygon([(256, 30 + 3 * seed), (470 - 5 * seed, 300), (380, 490 - 2 * seed), (130, 470), (40 + 5 * seed, 200)], fill=255)
    return Image.composite(image, Image.new("RGB", image.size, "white" if seed % 3 else "black"), mask)


def night(seed: int, top: int) -> Image.Image:
    """A black sky over hills."""
    image = Image.new("RGB", (512, 512), "black")
    hills = [(x, 200 + top + (x * (seed + 3) // 7) % 90) for x in range(0, 513, 32)]
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).polygon([*hills, (512, 512), (0, 512)], fill=255)
    image.paste(photo("coffee.png").resize((512, 512)), (0, 0), mask)
    return image


def nothing() -> Labelled:
    """One colour, with noise, a faint grade or JPEG; against small things on even grounds, grades, and pale pictures."""
    for level in range(0, 256, 23):
        plain = Image.new("RGB", (400, 300), (level, 255 - level, level // 2 + 60))
        yield f"{level}", plain, True
        yield f"{level} noisy", noisy(plain, 4), True
        moon = plain.copy()
        ImageDraw.Draw(moon).ellipse([190, 140, 210, 160], fill=((level + 128) % 256,) * 3)
        yield f"{level} moon", moon, False
    for name, image in scenes().items():
        yield f"{name}", image, False
        yield f"{name} pale", lit(image, 1.0, 0.25), False
        yield f"{name} black", lit(image, 0.02), True
    for seed in range(6):
        yield f"graded {seed}", graded(seed), False


def blocks() -> Labelled:
    """JPEG of quality 5 to 25, saved again as PNG and cropped, so that the file tells nothing; against quality 80 and more, grain, texture."""
    for number, (name, image) in enumerate(scenes().items()):
        for quality in (5, 15, 22):
            yield f"{name} {quality}", jpeg(image, quality).crop((number % 8, number % 5, image.width, image.height)), True
        for quality in (80, 95):
            yield f"{name} {quality}", jpeg(image, quality), False
        yield f"{name} as it is", image, False
        yield f"{name} made smaller", jpeg(image, 20).resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS), False


LABELLED: dict[str, tuple[Callable[[], Labelled], float, float]] = {  # check -> pictures, least precision, least recall
    "blurred": (blur, 0.95, 0.9), "bars": (bars, 0.95, 0.95), "nearly one colour": (nothing, 0.95, 0.95), "JPEG blocks": (blocks, 0.95, 0.75),
}  # fmt: skip


@lru_cache(maxsize=None)
def judged(kind: str) -> tuple[list[str], list[str], int, int]:
    """Names that were found and should not be, names that were not found, and how many there are with and without the defect."""
    wrong, missed, having, free = [], [], 0, 0
    for name, image, label in LABELLED[kind][0]():
        found = CHECKS[kind](look(bytes_of(image)), Target()) is not None
        having, free = having + label, free + (not label)
        if found != label:
            (missed if label else wrong).append(name)
    return wrong, missed, having, free


@pytest.mark.parametrize("kind", LABELLED)
def test_labelled_pictures_are_told_apart(kind):
    wrong, missed, having, free = judged(kind)
    right = having - len(missed)
    precision, recall = right / (right + len(wrong)), right / having
    print(f"\n| {kind} | {having} | {free} | {precision:.2f} | {recall:.2f} |")
    assert having >= 20 and free >= 20 and having + free >= 40
    assert precision >= LABELLED[kind][1] and recall >= LABELLED[kind][2], f"wrong: {wrong}; missed: {missed}"
