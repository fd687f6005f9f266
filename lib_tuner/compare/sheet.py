"""The grid as one picture: cells in rows and columns, labels above and to the left, planes of a third axis below each other.

Geometry in px. A column is as wide as its widest cell, a row as high as its highest; cells lie in the middle of their places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..data.pictures import writable
from .cells import Plan

GAP = 4
INK, PAPER, FAINT = "black", "white", (120, 120, 120)
EMPTY = (512, 512)  # of a grid without any picture
_LATIN = ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf", "Helvetica.ttc", "segoeui.ttf")
_CHINESE = ("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "SourceHanSansSC-Regular.otf", "msyh.ttc", "PingFang.ttc", "wqy-zenhei.ttc", "wqy-microhei.ttc", "simhei.ttf")
_WIDE = 0x2E80  # from here on letters are Chinese, Japanese and the like


@dataclass(frozen=True)
class Layout:
    """Where everything lies: the picture's size, the place (left, top, width, height) of each cell by its index, of each label by axis and number."""

    size: tuple[int, int]
    cells: tuple[tuple[int, int, int, int], ...]
    labels: Mapping[tuple[str, int, int], tuple[int, int, int, int]]  # (axis, number, plane)
    letters: int  # px


def layout(plan: Plan, sizes: Sequence[tuple[int, int] | None]) -> Layout:
    """The places of a plan's cells; `sizes` of the pictures that are there, by index."""
    columns, rows, planes = plan.shape
    usual = next((size for size in sizes if size), EMPTY)
    known = [size or usual for size in sizes]
    widths = [max(known[plan.at(x, y, z)][0] for y in range(rows) for z in range(planes)) for x in range(columns)]
    heights = [max(known[plan.at(x, y, z)][1] for x in range(columns) for z in range(planes)) for y in range(rows)]
    letters = max(11, min(28, usual[0] // 18))
    left = _margin(plan.labels("y"), letters, max(90, min(widths) // 2))
    top = _title(plan.labels("x"), widths, letters)
    head = _title(plan.labels("z"), [sum(widths)], letters)
    high = head + top + sum(heights) + GAP * rows
    cells: list[tuple[int, int, int, int]] = []
    labels: dict[tuple[str, int, int], tuple[int, int, int, int]] = {}
    for z in range(planes):
        above = z * (high + 2 * GAP)
        if head:
            labels["z", z, z] = (left, above, sum(widths) + GAP * (columns - 1), head)
        for y in range(rows):
            at_y = above + head + top + sum(heights[:y]) + GAP * y
            if left:
                labels["y", y, z] = (0, at_y, left, heights[y])
            for x in range(columns):
                at_x = left + sum(widths[:x]) + GAP * x
                if top and not y:
                    labels["x", x, z] = (at_x, above + head, widths[x], top)
                cells.append((at_x, at_y, widths[x], heights[y]))
    return Layout((left + sum(widths) + GAP * (columns - 1), planes * high + 2 * GAP * (planes - 1)), tuple(cells), labels, letters)


def compose(plan: Plan, pictures: Sequence[Image.Image | Path | None], said: Mapping[int, str] | None = None) -> Image.Image:
    """The whole grid (RGB) of pictures or of files, of which one is open at a time. `said`: what is written in a cell that has no picture, by its index."""
    where = layout(plan, [_size(picture) for picture in pictures])
    sheet = Image.new("RGB", where.size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for (name, number, _), box in where.labels.items():
        _write(pen, plan.labels(name)[number], box, where.letters, INK)
    for index, (box, picture) in enumerate(zip(where.cells, pictures)):
        left, top, width, height = box
        if picture is not None:
            with Image.open(picture) if isinstance(picture, Path) else nullcontext(picture) as opened:
                sheet.paste(opened.convert("RGB"), (left + (width - opened.width) // 2, top + (height - opened.height) // 2))
        elif text := (said or {}).get(index, ""):
            _write(pen, text, box, max(10, where.letters * 2 // 3), FAINT)
    return sheet


def _size(picture: Image.Image | Path | None) -> tuple[int, int] | None:
    if isinstance(picture, Path):
        with Image.open(picture) as opened:
            return opened.size
    return picture.size if picture else None


# ---- letters ---------------------------------------------------------------------------------------------------------


def _margin(labels: Sequence[str], letters: int, most: int) -> int:
    """The width of the labels at the left, of which the longest are broken into lines."""
    if not any(labels):
        return 0
    return min(most, max(int(font.getlength(writable(label, font))) for label in labels for font in [_font(label, letters)])) + 2 * GAP


def _title(labels: Sequence[str], widths: Sequence[int], letters: int) -> int:
    if not any(labels):
        return 0
    lines = max(len(_broken(label, width, letters)) for label, width in zip(labels, [*widths, *[widths[-1]] * len(labels)]))
    return lines * _line(letters) + 2 * GAP


def _write(pen: ImageDraw.ImageDraw, text: str, box: tuple[int, int, int, int], letters: int, ink: str | tuple[int, int, int]) -> None:
    """The text in the middle of its place, in as many lines as fit."""
    left, top, width, height = box
    lines = _broken(text, width, letters)[: max(1, height // _line(letters))]
    at = top + (height - len(lines) * _line(letters)) // 2
    font = _font(text, letters)
    for line in lines:
        pen.text((left + (width - font.getlength(line)) / 2, at), line, fill=ink, font=font)
        at += _line(letters)


def _line(letters: int) -> int:
    return letters + letters // 4 + 1


def _broken(text: str, width: int, letters: int) -> list[str]:
    """Lines that fit: at blanks, and where a word alone is too long (Chinese has no blanks), inside it."""
    font = _font(text, letters)
    text = writable(text, font)
    lines, line = [], ""
    for word in [word + " " for word in text.split(" ")]:
        if line and font.getlength((line + word).rstrip()) > width - GAP:
            lines.append(line.rstrip())
            line = ""
        for letter in word:
            if line and font.getlength(line + letter) > width - GAP and letter != " ":
                lines.append(line)
                line = ""
            line += letter
    return [*lines, line.rstrip()] if line.strip() else lines or [""]


def _font(text: str, letters: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return _found(any(ord(letter) >= _WIDE for letter in text), letters)


@lru_cache(maxsize=32)
def _found(wide: bool, letters: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    for name in (*_CHINESE, *_LATIN) if wide else (*_LATIN, *_CHINESE):
        try:
            return ImageFont.truetype(name, letters)
        except OSError:  # not on this machine
            continue
    try:
        return ImageFont.load_default(letters)
    except TypeError:  # before Pillow 10.1 there is one size
        return ImageFont.load_default()
