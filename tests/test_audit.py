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
        yield f"{name} moved", moved(image), True
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
        yield f"evening {seed}", night(seed, top, graded(3 * seed + 1, (512, 512))), False
        yield f"graded {seed}", graded(seed), False


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


def night(seed: int, top: int, sky: Image.Image | None = None) -> Image.Image:
    """A black sky over hills, or one that grows lighter."""
    image = (sky or Image.new("RGB", (512, 512), "black")).copy()
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
        found = CHECKS[kind](look(bytes_of(image, "BMP")), Target()) is not None
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


# ---- what a file's head tells: small files, of which there are many


def heads() -> list[tuple[str, bytes, set[str]]]:
    """(name, file, the kinds that it should be found as, of those that have nothing to do with what is painted)."""
    found: list[tuple[str, bytes, set[str]]] = []
    for number in range(12):
        side, image = 40 + number, photo("coffee.png").resize((40 + number, 44 + number))
        gif = [image.convert("P"), image.transpose(Image.Transpose.ROTATE_180).convert("P")]
        clear = image.convert("RGBA")
        clear.putpixel((number, 3), (9, 9, 9, 20 * number))
        wide = Image.frombytes("I;16", (side, side), bytes(range(side * 2)) * side)
        exif = Image.Exif()
        exif[0x0112] = number % 7 + 2
        upright = Image.Exif()
        upright[0x0112] = 1
        found += [
            (f"{number} png", bytes_of(image), set()), (f"{number} jpg", bytes_of(image, "JPEG", quality=90, exif=upright), set()), (f"{number} webp", bytes_of(image, "WEBP", lossless=True), set()),
            (f"{number} grey", bytes_of(image.convert("L")), set()), (f"{number} still gif", bytes_of(gif[0], "GIF"), {"colour mode"}),
            (f"{number} cmyk", bytes_of(image.convert("CMYK"), "JPEG", quality=92), {"colour mode"}), (f"{number} 16 bit", bytes_of(wide), {"colour mode"}),
            (f"{number} gif", bytes_of(gif[0], "GIF", save_all=True, append_images=gif[1:]), {"colour mode", "animated"}),
            (f"{number} webp moves", bytes_of(image, "WEBP", save_all=True, append_images=[image.rotate(90)]), {"animated"}),
            (f"{number} turned", bytes_of(image, "JPEG", quality=90, exif=exif), {"EXIF turned"}), (f"{number} clear", bytes_of(clear), {"transparent"}),
            (f"{number} opaque", bytes_of(image.convert("RGBA")), set()), (f"{number} cut", bytes_of(image)[: -200 - number], {"unreadable"}),
            (f"{number} text", b"no picture" * (number + 1), {"unreadable"}), (f"{number} cut jpg", bytes_of(image, "JPEG")[: -150 - number], {"unreadable"}),
            (f"{number} poor", bytes_of(image, "JPEG", quality=5 + 2 * number), {"JPEG blocks"}), (f"{number} long", bytes_of(image.resize((side * 3, side))), {"long"}),
            (f"{number} cinema", bytes_of(image.resize((239, 100 + number))), set()), (f"{number} high", bytes_of(image.resize((40, 101 + 5 * number))), {"long"}),
        ]  # fmt: skip
    return found


def test_what_the_head_of_a_file_tells_is_told_of_that_file_alone():
    files = heads()
    asked = {"colour mode", "animated", "EXIF turned", "transparent", "unreadable", "long"}
    wrong = [(name, kinds(data) & asked, want) for name, data, want in files if kinds(data) & asked != want & asked]
    assert wrong == [] and len(files) > 200
    assert all("JPEG blocks" in kinds(data) for _, data, want in files if "JPEG blocks" in want)
    assert all(sum(kind in want for _, _, want in files) >= 12 for kind in asked)


@pytest.mark.parametrize(("size", "target", "factor"), [
    ((512, 512), 512, None), ((466, 466), 512, None), ((256, 256), 512, 2.0), ((300, 300), 512, 512 / 300), ((4000, 300), 512, None), ((1024, 1024), 1024, None),
    ((512, 768), 512, None), ((340, 512), 512, 1.25), ((512, 512), 1024, 2.0), ((512, 512), 256, None),
])  # fmt: skip
def test_how_much_a_picture_would_be_enlarged(size, target, factor):
    """By hand: 340 x 512 is nearest to 384 x 640 (0.6 beside 0.664; 448 x 576 is 0.778), so 640 / 512; of 4000 x 300 both sides are above 1024 x 256."""
    told = CHECKS["too small"](Look("", size), Target(target))
    assert told is None if factor is None else told[1] == pytest.approx(factor)


def test_bars_do_not_count_as_size():
    assert CHECKS["too small"](Look("", (512, 512), bars=(0, 100, 0, 100)), Target())[1] == pytest.approx(1.25)  # 512 x 312 goes to 640 x 384


def test_bars_are_measured_in_pixels_of_the_upright_picture():
    image = on((0, 0, 0), photo("coffee.png").resize((3000, 1600)), 0, 200, 0, 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter: what is above lies at the right
    left, top, right, bottom = look(bytes_of(image, "JPEG", quality=90, exif=exif)).bars
    assert look(bytes_of(image, "JPEG", quality=90, exif=exif)).size == (2000, 3000)
    assert (top, bottom) == (0, 0) and left == pytest.approx(200, abs=8) and right == pytest.approx(200, abs=8)


def test_a_letterbox_is_found_on_both_sides_of_a_scene_that_ends_in_its_colour():
    scene = photo("astronaut.png").copy()
    ImageDraw.Draw(scene).polygon([(0, 330), (399, 390), (399, 399), (0, 399)], fill=(0, 0, 0))  # it ends in a black hill
    assert look(bytes_of(on((0, 0, 0), scene, 0, 50, 0, 50))).bars == (0, 50, 0, 50)


def test_a_soft_set_is_not_blurred_and_one_soft_picture_among_sharp_ones_is():
    def sharp(*values: float) -> dict[Path, Look]:
        return {Path(str(number)): Look("", (512, 512), sharpness=value) for number, value in enumerate(values)}

    assert [f.kind for f in audit(sharp(0.2, 0.2, 0.25, 0.2, 0.22))] == []
    assert [f.paths for f in audit(sharp(1.5, 1.4, 0.25, 2.0, 1.6))] == [(Path("2"),)]
    assert [f.paths for f in audit(sharp(0.1, 1.5))] == [(Path("0"),)] and list(audit(sharp(float("nan")))) == []


def test_sharpness_is_the_quotient_of_variances_that_another_library_computes():
    import numpy

    from lib_tuner.data.pictures import to_pixels

    image = photo("chelsea.png").convert("L").crop((0, 0, 66, 34))  # two tiles of 32 px across, one down
    levels = numpy.asarray(image).astype(float)
    bend = numpy.diff(levels, n=2, axis=1)[:32]
    pairs = [(bend[:, x : x + 32].var(ddof=1), levels[:32, x + 1 : x + 33].var(ddof=1)) for x in (0, 32)]
    grain = min(numpy.quantile([energy for energy, _ in pairs], 0.05), 45)
    want = numpy.quantile([max(energy - grain, 0) / contrast for energy, contrast in pairs], 0.95)
    assert measures._sharpness(to_pixels(image)[0] * 255) == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("quality", [1, 10, 34, 50, 75, 95])
def test_the_quality_of_a_jpeg_is_read_from_its_tables(quality):
    assert abs(look(bytes_of(photo("china.jpg").resize((64, 64)), "JPEG", quality=quality)).quality - quality) <= (2 if quality > 30 else 12)  # a step is 255 at most, which poor qualities reach


def test_a_known_look_is_not_taken_again(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(bytes_of(drawing(ord(name), (64, 64))))
    paths = [tmp_path / f"{name}.png" for name in "abc"] + [tmp_path / "gone.png"]
    first = dict(look_at(paths))
    assert first[paths[3]].trouble.startswith("cannot be read") and not first[paths[0]].trouble
    kept = {one.digest: Look.from_json(json.loads(json.dumps(one.to_json()))) for one in first.values() if one.digest}
    seen = []
    monkeypatch.setattr("lib_tuner.data.audit.look", lambda data: seen.append(data) or look(data))
    assert repr(dict(look_at(paths, kept))) == repr(first) and seen == []  # repr: nan is not itself
    paths[1].write_bytes(paths[0].read_bytes() + b"\0")
    dict(look_at(paths, kept))
    assert len(seen) == 1
    assert Look.from_json({"digest": "x"}) is None


def test_a_large_jpeg_is_measured_like_its_small_copy():
    image = photo("china.jpg")
    large, small = look(bytes_of(image.resize((image.width * 6, image.height * 6), Image.Resampling.LANCZOS), "JPEG", quality=95)), look(bytes_of(image))
    assert large.size == (image.width * 6, image.height * 6) and bin(large.hash ^ small.hash).count("1") <= 3
    assert replace(large, sharpness=1.0).blocks == 0.0
