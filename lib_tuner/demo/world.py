"""The drawn world: procedural pictures and their captions, for the embedded model, its judge and the tests.

A picture shows one shape: 8 shapes x 8 colours x 6 backgrounds x 4 fills x 3 sizes x 3 places, drawn with signed distances, so
a batch needs no data set on disk. The robot, the house and the checkered fill are held out: the UNet and the text encoder never see them.
Axes: B pictures, S side in pixels. Coordinates are x right, y down, in units of the shape's radius.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "heart", "moon", "cross", "arrow", "robot", "house")
COLOURS = {
    "red": (220, 35, 40), "orange": (250, 140, 20), "yellow": (250, 225, 40), "green": (40, 165, 60),
    "blue": (45, 105, 235), "purple": (135, 50, 190), "pink": (250, 130, 190), "brown": (125, 75, 35),
}
BACKGROUNDS = {
    "white": (245, 245, 245), "black": (18, 18, 18), "gray": (128, 130, 134),
    "beige": (226, 204, 164), "navy": (20, 28, 90), "mint": (165, 230, 205),
}
FILLS = ("solid", "striped", "dotted", "outlined", "checkered")
SIZES = ("small", "medium", "large")
PLACES = ("left", "center", "right")
HELD_OUT_SHAPES, HELD_OUT_FILLS = ("robot", "house"), ("checkered",)
ATTRIBUTES = {"shape": SHAPES, "colour": tuple(COLOURS), "background": tuple(BACKGROUNDS), "fill": FILLS, "size": SIZES, "place": PLACES}
RADII = (10.0, 15.5, 22.5)  # pixels of 64, per size
SHIFTS = (11.0, 10.0, 6.0)  # how far left and right are from the centre, per size
OUTLINE = 3.2  # pixels of 64
THIN = ("star", "moon", "cross", "house")  # shapes that, where they are small, have no inside left within their outline


@dataclass(frozen=True)
class Scenes:
    """What B pictures show: one index (B,) into each tuple of `ATTRIBUTES`."""

    shape: Tensor
    colour: Tensor
    background: Tensor
    fill: Tensor
    size: Tensor
    place: Tensor

    def __len__(self) -> int:
        return len(self.shape)

    def words(self, i: int) -> dict[str, str]:
        """The attributes of picture `i` as words."""
        return {f.name: ATTRIBUTES[f.name][int(getattr(self, f.name)[i])] for f in fields(self)}

    def fixed(self, **words: str) -> Scenes:
        """The same scenes with some attributes set for all, e.g. `fixed(shape="moon", colour="purple")`."""
        return replace(self, **{k: torch.full_like(getattr(self, k), ATTRIBUTES[k].index(v)) for k, v in words.items()})

    def fill_shows(self) -> Tensor:
        """(B,) False where the fill cannot be seen: a small thin shape that is outlined is the solid one, pixel for pixel."""
        thin = torch.isin(self.shape, torch.tensor([SHAPES.index(name) for name in THIN]))
        return ~(thin & (self.size == SIZES.index("small")) & (self.fill == FILLS.index("outlined")))


def random_scenes(count: int, generator: torch.Generator, held_out: bool = False) -> Scenes:
    """Independent uniform attributes; `held_out` also draws robots, houses and checkered fills."""
    def pick(name: str, without: int) -> Tensor:
        return torch.randint(len(ATTRIBUTES[name]) - (0 if held_out else without), (count,), generator=generator)

    return Scenes(pick("shape", len(HELD_OUT_SHAPES)), pick("colour", 0), pick("background", 0),
                  pick("fill", len(HELD_OUT_FILLS)), pick("size", 0), pick("place", 0))


def draw(scenes: Scenes, generator: torch.Generator, side: int = 64) -> Tensor:
    """Pictures (B, 3, S, S) in [-1, 1], with small random turns, shifts and shades, so that no two are alike."""
    count = len(scenes)
    rand = torch.rand(6, count, generator=generator) * 2 - 1  # (6, B) in [-1, 1]
    unit = side / 64
    radius = torch.tensor(RADII)[scenes.size] * (1 + 0.1 * rand[0]) * unit
    shift = torch.tensor(SHIFTS)[scenes.size] * (scenes.place - 1).float()
    cx, cy = (32 + shift + 1.5 * rand[1]) * unit, (32 + 3 * rand[2]) * unit
    axis = torch.arange(side) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    dx, dy = x - cx[:, None, None], y - cy[:, None, None]  # (B, S, S), pixels
    turn = 0.12 * rand[3][:, None, None]
    u = (dx * turn.cos() + dy * turn.sin()) / radius[:, None, None]
    v = (dy * turn.cos() - dx * turn.sin()) / radius[:, None, None]
    colour = _palette(COLOURS)[scenes.colour] * (1 + 0.06 * rand[4][:, None])
    background = _palette(BACKGROUNDS)[scenes.background] * (1 + 0.04 * rand[5][:, None])
    distance, details = torch.empty_like(u), torch.zeros(count, 3, side, side)
    covered = torch.zeros_like(u)  # where details lie over the fill
    for index in scenes.shape.unique().tolist():
        of = scenes.shape == index
        distance[of] = DISTANCES[SHAPES[index]](u[of], v[of])
        if SHAPES[index] in DETAILS:
            covered[of], details[of] = DETAILS[SHAPES[index]](u[of], v[of], colour[of])
    pixels = distance * radius[:, None, None]
    inside = (0.5 - pixels / unit).clamp(0, 1)[:, None]  # (B, 1, S, S): one pixel of soft edge
    body = _filled(scenes.fill, colour, background, dx / unit, dy / unit, pixels / unit)
    body = body + (details - body) * covered[:, None]
    picture = background[:, :, None, None] * (1 - inside) + body * inside
    return picture.clamp(0, 1) * 2 - 1


def _palette(colours: dict[str, tuple[int, int, int]]) -> Tensor:
    return torch.tensor(list(colours.values())) / 255  # (n, 3)


def _filled(fill: Tensor, colour: Tensor, background: Tensor, dx: Tensor, dy: Tensor, pixels: Tensor) -> Tensor:
    """The shape's inside (B, 3, S, S): `pixels` is the distance to the edge, negative inside."""
    main = colour[:, :, None, None].expand(-1, -1, *dx.shape[1:])
    light, dark = main + (1 - main) * 0.75, main * 0.35
    waves = ((dx + dy) * (2 * math.pi / 10)).sin() * 2  # diagonal stripes, a period of 7 pixels across them
    pitch = 8.0
    gx, gy = (dx + pitch / 2) % pitch - pitch / 2, (dy + pitch / 2) % pitch - pitch / 2
    squares = (dx * (math.pi / 7)).sin() * (dy * (math.pi / 7)).sin() * 6
    shares = {  # how much of the second colour a pixel takes, and that colour
        "striped": ((waves * 0.5 + 0.5).clamp(0, 1), dark),
        "dotted": ((2.9 - (gx**2 + gy**2).sqrt()).clamp(0, 1), light),
        "outlined": ((-pixels - OUTLINE).clamp(0, 1), background[:, :, None, None].expand_as(main)),
        "checkered": ((squares + 0.5).clamp(0, 1), light),
    }
    result = main.clone()
    for name, (share, second) in shares.items():
        of = fill == FILLS.index(name)
        result[of] = main[of] + (second[of] - main[of]) * share[of][:, None]
    return result


def _box(x: Tensor, y: Tensor, half_x: float, half_y: float) -> Tensor:
    return torch.maximum(x.abs() - half_x, y.abs() - half_y)


def _triangle(x: Tensor, y: Tensor, inner: float) -> Tensor:
    """Equilateral, pointing up; `inner` is the radius of the inscribed circle."""
    return torch.maximum(y, 0.866 * x.abs() - 0.5 * y) - inner


def _star(x: Tensor, y: Tensor) -> Tensor:
    sector = math.pi / 5
    angle = torch.atan2(x, -y)
    angle = ((angle + sector) % (2 * sector) - sector).abs()
    r = (x**2 + y**2).sqrt()
    outer, inner = (1.1, 0.0), (0.46 * math.cos(sector), 0.46 * math.sin(sector))
    ex, ey = inner[0] - outer[0], inner[1] - outer[1]
    length = math.hypot(ex, ey)
    return ((r * angle.cos() - outer[0]) * -ey + (r * angle.sin() - outer[1]) * ex) * -1 / length


def _heart(x: Tensor, y: Tensor, d: float = 0.85) -> Tensor:
    y = y - 0.05
    diamond = (x.abs() + y.abs() - d) / math.sqrt(2)
    lobe = ((x.abs() - d / 2) ** 2 + (y + d / 2) ** 2).sqrt() - d / math.sqrt(2)
    return torch.minimum(diamond, lobe)


def _moon(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum((x**2 + y**2).sqrt() - 1.0, 0.78 - ((x - 0.48) ** 2 + (y + 0.1) ** 2).sqrt())


def _arrow(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_triangle(x, y + 0.45, 0.48), _box(x, y - 0.45, 0.3, 0.55))


def _robot(x: Tensor, y: Tensor) -> Tensor:
    antenna = torch.minimum(_box(x, y + 0.95, 0.09, 0.25), (x**2 + (y + 1.12) ** 2).sqrt() - 0.2)
    ears = _box(x, y - 0.05, 0.98, 0.22)
    return torch.minimum(torch.minimum(_box(x, y - 0.1, 0.8, 0.78), antenna), ears)


def _robot_details(x: Tensor, y: Tensor, colour: Tensor) -> tuple[Tensor, Tensor]:
    eyes = ((x.abs() - 0.36) ** 2 + (y + 0.1) ** 2).sqrt()
    white, dark = (eyes < 0.27).float(), ((eyes < 0.12) | (_box(x, y - 0.5, 0.45, 0.11) < 0)).float()
    return torch.maximum(white, dark), (white * (1 - dark))[:, None].expand(-1, 3, -1, -1) * 0.97 + 0.02


def _house(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y - 0.45, 0.72, 0.55), _triangle(x, y + 0.48, 0.42))


def _house_details(x: Tensor, y: Tensor, colour: Tensor) -> tuple[Tensor, Tensor]:
    wall = (_box(x, y - 0.45, 0.72, 0.55) < 0) & (y > -0.08)
    door = _box(x, y - 0.7, 0.2, 0.3) < 0
    tone = torch.where(door[:, None], colour[:, :, None, None] * 0.4, torch.tensor([0.93, 0.88, 0.76])[None, :, None, None])
    return wall.float(), tone


DISTANCES = {
    "circle": lambda x, y: (x**2 + y**2).sqrt() - 0.95,
    "square": lambda x, y: _box(x, y, 0.82, 0.82),
    "triangle": lambda x, y: _triangle(x, y - 0.2, 0.56),
    "star": _star,
    "heart": _heart,
    "moon": _moon,
    "cross": lambda x, y: torch.minimum(_box(x, y, 0.95, 0.32), _box(x, y, 0.32, 0.95)),
    "arrow": _arrow,
    "robot": _robot,
    "house": _house,
}
DETAILS = {"robot": _robot_details, "house": _house_details}

PHRASES = (
    "a {size} {colour} {fill} {shape} on a {background} background",
    "a {size} {colour} {fill} {shape} on a {background} background, on the {place}",
    "{colour} {fill} {shape}, {background} background, {size}",
    "{shape}, {colour}, {fill}, {size}, {background} background, {place}",
    "a drawing of a {colour} {fill} {shape} on {background}",
    "a {colour} {shape} on a {background} background",
    "a {fill} {colour} {shape}",
    "a picture of a {size} {fill} {colour} {shape} on a {background} background",
    "{background} background, {size} {colour} {shape}, {fill}",
    "on the {place}: a {colour} {fill} {shape}, {size}, {background} background",
    "a {colour} {fill} {shape} in front of a {background} background",
    "a {shape}",
)
FULL_PHRASES = (0, 2, 7, 8)  # those that name shape, colour, background, fill and size


def caption(words: dict[str, str], phrase: int = 0) -> str:
    """The caption of a picture in one of `PHRASES`."""
    return PHRASES[phrase].format(**words)
