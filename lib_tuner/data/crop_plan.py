"""Which crops the pictures of a folder get, and what is wrong with them: nothing here writes.

    record = book.get(key) or propose(item, picture, cfg, detector)     # kept crops win over found ones
    pieces(item, record, cfg)                                           # -> what is to be written, and problems by which pictures can be filtered
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from PIL import Image

from ..config import opt
from .buckets import Size
from .crop import NEAR, Box, Frame, Point, Target, box_of, cuts, enlargement, fits, framed, hull, in_pixels, subject_of, tiles, with_margin, zoom_limit
from .crop_file import Crop, PictureCrops
from .focal import MARGIN, Detector, Focus, find
from .item import Item
from .items import Problem

ENOUGH = 1.0 + 1e-9  # of enlargement: what floating point makes of none
CLOSE = 3.0  # heights of a face in its own crop
KINDS = ("stale", "small", "cut", "apart", "review")  # of a crop's problems


@dataclass(frozen=True)
class CropConfig:
    """How pictures are cropped."""

    size: str = opt("512x512", "Size", "What pictures become: 512x768, bucket:512 (the size of the nearest aspect that training has) or area:512 (no crop).", essential=True)
    focus: str = opt("auto", "Find the subject by", "A face, and where there is none detail (auto) or the middle (face); or always detail, or the centre.", choices=("auto", "face", "detail", "centre"))
    enlarge: float = opt(1.0, "Largest enlargement", "Pictures too small for this are reported and left out; 1 enlarges nothing.", min=1.0, max=16.0)
    faces: str = opt("together", "Several faces", "One crop of all that fit, or one crop for each face.", choices=("together", "each"))
    split: str = opt("off", "Split large pictures", "Tiles that cover the picture: as large as fits, or in its own pixels.", choices=("off", "strips", "pixels"))
    split_below: float = opt(0.5, "Split where a crop shows less than", "Part of the picture that one crop shows.", min=0.0, max=1.0)
    overlap: float = opt(0.2, "Overlap of tiles", "Part of a tile's side that it shares with its neighbour.", min=0.0, max=0.9)

    def check(self) -> None:
        Target.parse(self.size)


@dataclass(frozen=True)
class Piece:
    """One picture to be made: a box of an item, in pixels upright, resized to `size`; the `number`th of `count` crops."""

    item: Item
    box: Box
    size: Size
    number: int = 1
    count: int = 1

    @property
    def enlargement(self) -> float:
        """By how much it is enlarged, along the side where it is most."""
        return max(self.size[0] / (self.box[2] - self.box[0]), self.size[1] / (self.box[3] - self.box[1]))


# ---- finding ---------------------------------------------------------------------------------------------------------


def propose(item: Item, picture: Image.Image, cfg: CropConfig, detector: Detector | None = None) -> PictureCrops:
    """The crops of an upright picture as the program finds them."""
    target = Target.parse(cfg.size)
    if target.kind == "area":
        return PictureCrops(item.size, item.digest)
    size = target.size_for(item.size)
    if _is_split(item.size, size, cfg):
        zoom = zoom_limit(item.size, size) if cfg.split == "pixels" else 1.0
        return PictureCrops(item.size, item.digest, tuple(Crop(frame) for frame in tiles(item.size, size, cfg.overlap, zoom)), (), "tiles")
    focus = find(picture, cfg.focus, detector)
    faces = [in_pixels(box, item.size) for box in focus.subjects]
    each = cfg.faces == "each" and len(faces) > 1
    frames = [_close_up(face, item.size, size, cfg.enlarge) for face in faces] if each else [_frame(focus, faces, item.size, size)]
    return PictureCrops(item.size, item.digest, tuple(map(Crop, frames)), focus.subjects, focus.found)


def _is_split(size: Size, target: Size, cfg: CropConfig) -> bool:
    if cfg.split == "off":
        return False
    zoom = zoom_limit(size, target) if cfg.split == "pixels" else 1.0
    left, top, right, bottom = box_of(size, target, Frame(zoom=zoom))
    return (right - left) * (bottom - top) < cfg.split_below * size[0] * size[1]


def _frame(focus: Focus, faces: list[Box], size: Size, target: Size) -> Frame:
    """All faces where they fit, with room around them where that fits too; else the largest one."""
    if not faces:
        return framed(size, target, focus.point)
    for boxes in ([with_margin(face, MARGIN, size) for face in faces], faces):
        if fits(hull(boxes), size, target):
            return framed(size, target, focus.point if len(faces) == 1 else _middle(hull(boxes), size), hull(boxes))
    face, _ = subject_of(faces, size, target)
    roomy = with_margin(face, MARGIN, size)
    return framed(size, target, focus.point, roomy if fits(roomy, size, target) else face)


def _close_up(face: Box, size: Size, target: Size, enlarge: float) -> Frame:
    """A crop of one face, as close as the picture's pixels allow."""
    height = box_of(size, target, Frame())[3] - box_of(size, target, Frame())[1]
    zoom = min(max(1.0, height / (CLOSE * (face[3] - face[1]))), zoom_limit(size, target, enlarge))
    roomy = with_margin(face, MARGIN, size)
    return framed(size, target, _middle(face, size), roomy if fits(roomy, size, target, zoom) else face, zoom)


def _middle(box: Box, size: Size) -> Point:
    return (box[0] + box[2]) / 2 / size[0], (box[1] + box[3]) / 2 / size[1]


# ---- what is written, and what is wrong ------------------------------------------------------------------------------


def pieces(item: Item, record: PictureCrops, cfg: CropConfig) -> tuple[list[Piece], list[Problem]]:
    """What is to be written of a picture, and its problems. Stale crops, and those that enlarge by more than is allowed, make nothing."""
    if record.is_stale(item):
        return [], [Problem(item.path, "has changed since it was cropped; look at its crops again", "stale")]
    made = [_piece(item, crop, cfg, number, len(record.crops)) for number, crop in enumerate(record.crops, 1)]
    kept = [piece for piece in made if piece.enlargement <= cfg.enlarge * ENOUGH]
    return kept, [*_small(made, cfg), *_subjects(item, record, made)]


def problems_of(item: Item, record: PictureCrops, cfg: CropConfig) -> list[Problem]:
    """All of a picture's problems, whether nobody has reviewed its crops among them: what a page filters by; kinds as in KINDS."""
    problems = pieces(item, record, cfg)[1]
    if any(crop.state == "auto" for crop in record.crops):
        problems.append(Problem(item.path, "has crops that nobody has looked at", "review"))
    return problems


def _piece(item: Item, crop: Crop, cfg: CropConfig, number: int, count: int) -> Piece:
    target = Target.parse(crop.target or cfg.size)
    size = target.size_for(item.size, cfg.enlarge)
    if target.kind == "area":
        return Piece(item, (0.0, 0.0, float(item.size[0]), float(item.size[1])), size, number, count)
    return Piece(item, _whole(box_of(item.size, size, crop.frame), size), size, number, count)


def _whole(box: Box, size: Size) -> Box:
    """The box of a crop that is not scaled, from a whole pixel on, so that it is the picture's pixels and no blur of two; any other as it is."""
    if abs(box[2] - box[0] - size[0]) > NEAR or abs(box[3] - box[1] - size[1]) > NEAR:
        return box
    left, top = round(box[0]), round(box[1])
    return float(left), float(top), float(left + size[0]), float(top + size[1])


def _small(made: list[Piece], cfg: CropConfig) -> list[Problem]:
    """What would be enlarged: left out, or told where it is allowed."""
    problems = []
    for piece in made:
        (w, h), (W, H), times = piece.item.size, piece.size, piece.enlargement
        if times > cfg.enlarge * ENOUGH:
            advice = "choose a smaller size or allow it" if enlargement(piece.item.size, piece.size) > cfg.enlarge * ENOUGH else "zoom out or allow it"
            problems.append(Problem(piece.item.path, f"is {w} x {h} px and its crop would be enlarged {times:.2f} times to {W} x {H}, so it is left out; {advice}", "small"))
        elif times > ENOUGH:
            problems.append(Problem(piece.item.path, f"is {w} x {h} px and its crop is enlarged {times:.2f} times to {W} x {H}", "small"))
    return problems


def _subjects(item: Item, record: PictureCrops, made: list[Piece]) -> list[Problem]:
    """Subjects that no crop holds as a whole: cut through, or left out beside others that are too far away."""
    faces = [in_pixels(box, item.size) for box in record.subjects]
    missing = [face for face in faces if all(cuts(piece.box, face) for piece in made)]
    if not missing:
        return []
    if len(missing) < len(faces) and not any(fits(hull(faces), item.size, piece.size) for piece in made):
        return [Problem(item.path, f"has {len(faces)} faces too far apart for one crop, which leaves out {len(missing)}", "apart")]
    return [Problem(item.path, "has a face that its crop cuts", "cut")]


def with_target(record: PictureCrops, number: int, target: str) -> PictureCrops:
    """The crops where one (from 1) has a size of its own, or with "" that of the data set again. Raises ValueError."""
    crops = [replace(crop, target=target, state="adjusted") if i == number else crop for i, crop in enumerate(record.crops, 1)]
    return replace(record, crops=tuple(crops))
