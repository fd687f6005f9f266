"""Where a crop lies in a picture: exact geometry, pure functions, no pixels.

Axes: w, h a picture's sides upright; W, H the sides of what is made of it, whole pixels, width first. A box is (left, top, right, bottom) in pixels of the
picture, not rounded: Pillow's `resize((W, H), box=box)` takes it as it is, so the aspect is exact and the result W x H without any scaled size in between
that could be one short. x, y and the distances of a drag are fractions of the picture, so that a crop stays where it is when the target changes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..settings import DataConfig
from .buckets import Size, bucket_for
from .pictures import SMALLEST

Box = tuple[float, float, float, float]
Point = tuple[float, float]

LONGEST = 8192  # px; a longer side is a slip of the hand
NEAR = 1e-6  # px; what floating point may be off
_STEP = DataConfig.bucket_step  # px
_SIZE = re.compile(r"(\d+)(?:\s*[x×*]\s*(\d+))?", re.IGNORECASE)


@dataclass(frozen=True)
class Frame:
    """A crop as it is kept: its centre in fractions of the picture, and how often it fits into the largest frame of the same aspect (1: that one)."""

    x: float = 0.5
    y: float = 0.5
    zoom: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.x <= 1 and 0 <= self.y <= 1):
            raise ValueError(f"The centre of a crop ({self.x}, {self.y}) is outside the picture; give fractions from 0 to 1.")
        if not 1 <= self.zoom < math.inf:
            raise ValueError(f"The zoom of a crop is {self.zoom}; give 1 (the largest frame that fits) or more.")


@dataclass(frozen=True)
class Target:
    """What pictures become. `kind`: size (W x H), bucket (the size of the nearest aspect that training has at that resolution), or area (nothing cut off)."""

    kind: str
    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> Target:
        """`512x768`, `512`, `bucket:512` or `area:512`. Raises ValueError."""
        kind, colon, sides = text.strip().rpartition(":")
        kind, found = kind if colon else "size", _SIZE.fullmatch(sides.strip())
        if kind not in ("size", "bucket", "area") or not found or (found[2] and kind != "size"):
            raise ValueError(f"{text!r} is no size of a crop; write 512x768, bucket:512 or area:512.")
        width, height = int(found[1]), int(found[2] or found[1])
        if not (SMALLEST <= width <= LONGEST and SMALLEST <= height <= LONGEST):
            raise ValueError(f"{text!r}: sides are from {SMALLEST} to {LONGEST} px.")
        if kind == "bucket" and width < _STEP:
            raise ValueError(f"{text!r}: the sides of buckets are multiples of {_STEP} px; write bucket:{_STEP} or more.")
        return cls(kind, width, height)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}" if self.kind == "size" else f"{self.kind}:{self.width}"

    def size_for(self, size: Size, enlarge: float = 1.0) -> Size:
        """(W, H) of a picture of this size; buckets are those of a run with the usual settings at that resolution."""
        if self.kind == "size":
            return self.width, self.height
        if self.kind == "area":
            return area_size(size, self.width, enlarge)
        return bucket_for(size, DataConfig(resolution=self.width))


def area_size(size: Size, side: int, enlarge: float = 1.0) -> Size:
    """(W, H) of the picture's own shape whose area is that of a square: nothing is cut off, each side is off by half a pixel at most."""
    w, h = size
    scale = min(enlarge, side / math.sqrt(w * h))
    return max(1, round(w * scale)), max(1, round(h * scale))


# ---- the frame -------------------------------------------------------------------------------------------------------


def frame_size(size: Size, target: Size, zoom: float = 1.0) -> tuple[float, float]:
    """Width and height of a frame in pixels of the picture: at zoom 1 it touches both ends of one side, since W/w and H/h are compared, not w and h.

    No zoom makes it narrower than a pixel.
    """
    (w, h), (W, H) = size, target
    width, height = (float(w), w * H / W) if W * h >= H * w else (h * W / H, float(h))
    zoom = min(zoom, _most(width, height))
    return width / zoom, height / zoom


def _most(width: float, height: float) -> float:
    """The zoom that makes the largest frame a pixel narrow."""
    return max(1.0, min(width, height))


def box_of(size: Size, target: Size, frame: Frame) -> Box:
    """The frame's box, pushed inside where its centre is too near to an edge: no pixel of it is outside the picture."""
    width, height = frame_size(size, target, frame.zoom)
    left, right = _inside(frame.x * size[0] - width / 2, width, size[0])
    top, bottom = _inside(frame.y * size[1] - height / 2, height, size[1])
    return left, top, right, bottom


def _inside(start: float, length: float, whole: int) -> tuple[float, float]:
    start = min(max(start, 0.0), max(whole - length, 0.0))
    return start, min(start + length, float(whole))


def enlargement(size: Size, target: Size, zoom: float = 1.0) -> float:
    """By how much a crop is enlarged, along one side; 1 or less: not at all."""
    return target[0] / frame_size(size, target, zoom)[0]


def zoom_limit(size: Size, target: Size, enlarge: float = 1.0) -> float:
    """The largest zoom at which nothing is enlarged by more than this; 1 where the picture is too small for any."""
    return max(1.0, enlarge / enlargement(size, target))


# ---- moving it -------------------------------------------------------------------------------------------------------


def clamped(frame: Frame, size: Size, target: Size) -> Frame:
    """The same box with its true centre and zoom: what a drag starts from."""
    return _centred(box_of(size, target, frame), size, min(frame.zoom, _most(*frame_size(size, target))))


def moved(frame: Frame, size: Size, target: Size, dx: float = 0.0, dy: float = 0.0) -> Frame:
    """The frame dragged by fractions of the picture, to its edge at most."""
    frame = clamped(frame, size, target)
    return clamped(replace(frame, x=_fraction(frame.x + dx), y=_fraction(frame.y + dy)), size, target)


def nudged(frame: Frame, size: Size, target: Size, right: int = 0, down: int = 0) -> Frame:
    """The frame moved by pixels of the crop that it makes."""
    width, height = frame_size(size, target, frame.zoom)
    return moved(frame, size, target, right * width / target[0] / size[0], down * height / target[1] / size[1])


def zoomed(frame: Frame, size: Size, target: Size, factor: float, enlarge: float = 1.0, about: Point | None = None) -> Frame:
    """The frame zoomed in (factor above 1) or out, between the largest frame and `zoom_limit`; the point `about` (fractions) stays where it is in the frame."""
    left, top, right, bottom = box_of(size, target, frame)
    zoom = min(max(frame.zoom * factor, 1.0), zoom_limit(size, target, enlarge))
    width, height = frame_size(size, target, zoom)
    x, y = (about[0] * size[0], about[1] * size[1]) if about else ((left + right) / 2, (top + bottom) / 2)
    left, right = _inside(x - (x - left) / (right - left) * width, width, size[0])
    top, bottom = _inside(y - (y - top) / (bottom - top) * height, height, size[1])
    return _centred((left, top, right, bottom), size, zoom)


def _centred(box: Box, size: Size, zoom: float) -> Frame:
    return Frame(_fraction((box[0] + box[2]) / 2 / size[0]), _fraction((box[1] + box[3]) / 2 / size[1]), zoom)


def _fraction(value: float) -> float:
    return min(max(value, 0.0), 1.0)


# ---- the subject -----------------------------------------------------------------------------------------------------


def framed(size: Size, target: Size, point: Point, subject: Box | None = None, zoom: float = 1.0) -> Frame:
    """The frame about a point (fractions) that is moved until the subject is inside; where it is larger than the frame, nothing but subject is shown."""
    frame = Frame(_fraction(point[0]), _fraction(point[1]), max(1.0, zoom))
    box = box_of(size, target, frame)
    if subject is None:
        return clamped(frame, size, target)
    placed = []
    for axis in (0, 1):
        length = box[axis + 2] - box[axis]
        low, high = sorted((subject[axis + 2] - length, subject[axis]))
        placed.append(_inside(min(max(box[axis], low), high), length, size[axis]))
    (left, right), (top, bottom) = placed
    return _centred((left, top, right, bottom), size, frame.zoom)


def cuts(box: Box, subject: Box) -> bool:
    """Whether part of the subject lies outside the box."""
    return subject[0] < box[0] - NEAR or subject[1] < box[1] - NEAR or subject[2] > box[2] + NEAR or subject[3] > box[3] + NEAR


def hull(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds them all."""
    return min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)


def fits(subject: Box, size: Size, target: Size, zoom: float = 1.0) -> bool:
    """Whether a frame can hold it."""
    width, height = frame_size(size, target, zoom)
    return subject[2] - subject[0] <= width + NEAR and subject[3] - subject[1] <= height + NEAR


def subject_of(boxes: Sequence[Box], size: Size, target: Size) -> tuple[Box, bool]:
    """What a crop has to hold: all boxes where the largest frame can, else the largest of them; and whether it is all of them."""
    whole = hull(boxes)
    if fits(whole, size, target):
        return whole, True
    return max(boxes, key=lambda b: (b[2] - b[0]) * (b[3] - b[1])), len(boxes) == 1


def with_margin(box: Box, margin: float, size: Size) -> Box:
    """The box with so much of its own sides more at each edge, as far as the picture reaches."""
    dx, dy = margin * (box[2] - box[0]), margin * (box[3] - box[1])
    return max(0.0, box[0] - dx), max(0.0, box[1] - dy), min(float(size[0]), box[2] + dx), min(float(size[1]), box[3] + dy)


def in_pixels(box: Box, size: Size) -> Box:
    """A box in fractions of the picture as one in its pixels."""
    return box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1]


# ---- splitting -------------------------------------------------------------------------------------------------------


def tiles(size: Size, target: Size, overlap: float = 0.2, zoom: float = 1.0) -> tuple[Frame, ...]:
    """Frames that cover the whole picture, row by row, as few as can be; neighbours share at least `overlap` (0 to 0.9) of a side.

    Zoom 1 makes strips as in the WebUI's "split oversized", `zoom_limit` tiles without scaling. Raises ValueError for another overlap.
    """
    if not 0 <= overlap <= 0.9:
        raise ValueError(f"An overlap of {overlap} is outside [0, 0.9]; 0.2 lets neighbours share a fifth of a side.")
    width, height = frame_size(size, target, zoom)
    return tuple(_centred((x, y, x + width, y + height), size, zoom) for y in _starts(size[1], height, overlap) for x in _starts(size[0], width, overlap))


def _starts(whole: int, length: float, overlap: float) -> list[float]:
    """Evenly spread starts of pieces, from 0 to the last that ends where the whole does."""
    room = whole - length
    steps = max(0, math.ceil(room / (length * (1 - overlap)) - NEAR))
    return [room * i / steps for i in range(steps + 1)] if steps else [max(0.0, room / 2)]
