"""Hints made of a picture: edges, lines, colours. What a T2I-Adapter or a ControlNet is trained to follow.

Axes: H W pixels. A picture is (3, H, W) in [0, 1], a hint (1 or 3, H, W) in [0, 1], white on black where it is lines. Sizes that are said for 512 px are taken
by the shorter side. Nothing here is a network: depth needs one (depth.py), and poses come as pictures of one's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

GRID, SHRUNK = 64, 8  # px: a cell of T2I-Adapter's colour grid; by how much a tile is made smaller
STANDARD = 512  # px


@dataclass(frozen=True)
class Recipe:
    """How a hint is made; `low` and `high` in levels of 0 to 255, `blur` the deviation in px, `cell` in px or 0 for the usual."""

    kind: str
    low: float = 100.0
    high: float = 200.0
    blur: float = 1.0
    cell: int = 0


def make_hint(picture: Tensor, recipe: Recipe) -> Tensor:
    """The hint of a picture."""
    return KINDS[recipe.kind](picture, recipe)


def gray(picture: Tensor) -> Tensor:
    """(1, H, W): Rec. 601's luma, Pillow's mode L."""
    return (picture * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """(C, H, W) blurred with a normal kernel cut at 4 deviations, its borders repeated."""
    if sigma <= 0:
        return x
    reach = max(1, math.ceil(4 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).float() / sigma) ** 2)
    kernel = kernel / kernel.sum()
    x = F.pad(x[:, None], (reach,) * 4, mode="replicate")  # (C, 1, H + 2r, W + 2r)
    return F.conv2d(F.conv2d(x, kernel[None, None, None, :]), kernel[None, None, :, None])[:, 0]


def sobel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences (C, H, W) down and to the right by Sobel's 3x3, not normalised (a step of 1 gives 4), borders repeated."""
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    found = F.conv2d(F.pad(x[:, None], (1, 1, 1, 1), mode="replicate"), torch.stack([across.T, across])[:, None])  # (C, 2, H, W)
    return found[:, 0], found[:, 1]


# ---- edges -----------------------------------------------------------------------------------------------------------


def canny(picture: Tensor, recipe: Recipe) -> Tensor:
    """Canny's edges (1986): thin lines of 0 or 1, of the luma. Blur, Sobel, the ridges of its length, and those above `low` that lead to one above `high`."""
    down, right = (d[0] for d in sobel(gaussian(gray(picture), recipe.blur)))  # (H, W)
    strength = torch.hypot(down, right)
    edge = _ridges(strength, down, right)
    weak, strong = edge & (strength >= recipe.low / 255), edge & (strength >= recipe.high / 255)
    return _joined(strong, weak).float()[None]


def _ridges(strength: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """(H, W) bool: at least as strong as both neighbours along the gradient, which lie between two pixels and are interpolated; the border has none."""
    H, W = strength.shape
    around = F.pad(strength[None, None], (1, 1, 1, 1))[0, 0]

    def at(dy: Tensor, dx: Tensor) -> Tensor:
        y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
        return around[y + 1 + dy, x + 1 + dx]

    sy, sx = down.sign().long(), right.sign().long()
    steep = down.abs() >= right.abs()
    zero = torch.zeros_like(sy)
    share = torch.minimum(down.abs(), right.abs()) / torch.maximum(down.abs(), right.abs()).clamp(min=1e-12)
    along, aside = torch.where(steep, sy, zero), torch.where(steep, zero, sx)  # one step along the stronger axis

    def neighbour(side: int) -> Tensor:
        straight, diagonal = at(side * along, side * aside), at(side * sy, side * sx)
        return straight + share * (diagonal - straight)

    ridge = (strength > 0) & (strength >= neighbour(1)) & (strength >= neighbour(-1))
    inner = torch.zeros_like(ridge)
    inner[1:-1, 1:-1] = True
    return ridge & inner


def _joined(strong: Tensor, weak: Tensor) -> Tensor:
    """The pixels of `weak` (H, W) from which a way through weak ones, diagonals included, leads to a strong one."""
    width = weak.shape[1]
    left, todo = (weak & ~strong).flatten(), strong.flatten().nonzero()[:, 0]  # no edge is on the border, so no neighbour lies outside
    around = torch.tensor([-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1])
    while len(todo):
        near = (todo[:, None] + around).flatten()
        todo = near[left[near]].unique()
        left[todo] = False
    return weak & ~left.reshape(weak.shape)


def soft_edge(picture: Tensor, recipe: Recipe) -> Tensor:
    """How strong edges are: the longest of the three colours' Sobel, in parts of the 99th percentile; grey where they are weak, as HED's are."""
    down, right = sobel(gaussian(picture, recipe.blur))
    strength = torch.hypot(down, right).amax(0, keepdim=True)
    top = strength.flatten().kthvalue(max(1, math.ceil(0.99 * strength.numel()))).values
    return (strength / top.clamp(min=16 / 255)).clamp(0, 1)  # a picture without edges is not made of its noise


def line_art(picture: Tensor, recipe: Recipe) -> Tensor:
    """Dark lines: how much darker than their surroundings all three colours are (the ControlNet extension's `lineart_standard`).

    d = min(blurred - x) in levels, 127 d / max(16, median of d above 8); the blur's deviation is 6 px at 512 px.
    """
    sigma = 6 * min(picture.shape[1:]) / STANDARD
    darker = ((gaussian(picture, sigma) - picture) * 255).amin(0, keepdim=True).clamp(0, 255)
    lines = darker[darker > 8]
    middle = float(lines.median()) if lines.numel() else 0.0
    return (127 * darker / max(16.0, middle)).clamp(0, 255) / 255


# ---- colours ---------------------------------------------------------------------------------------------------------


def colour_grid(picture: Tensor, recipe: Recipe) -> Tensor:
    """T2I-Adapter's colour palette: each square of `cell` px in its mean colour."""
    H, W = picture.shape[1:]
    small = _smaller(picture, recipe.cell or GRID)
    return F.interpolate(small[None], size=(H, W), mode="nearest")[0]


def tile(picture: Tensor, recipe: Recipe) -> Tensor:
    """The picture made `cell` times smaller and large again, without its details."""
    H, W = picture.shape[1:]
    return F.interpolate(_smaller(picture, recipe.cell or SHRUNK)[None], size=(H, W), mode="bicubic", align_corners=False)[0].clamp(0, 1)


def _smaller(picture: Tensor, cell: int) -> Tensor:
    return F.adaptive_avg_pool2d(picture, tuple(max(1, side // cell) for side in picture.shape[1:]))


KINDS: dict[str, Callable[[Tensor, Recipe], Tensor]] = {"canny": canny, "lineart": line_art, "softedge": soft_edge, "colour": colour_grid, "tile": tile}
GRAY = ("canny", "lineart", "softedge")  # whose three channels are the same
