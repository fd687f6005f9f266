"""Numbers that tell whether a picture is fit to be trained on, each from a formula that its docstring states.

Axes: gray is (H, W), colour (3, H, W), levels 0 to 255 as float. What is measured at the working size (shorter side `WORKING` px at most) is the same for a
photograph of 24 megapixels and for what training makes of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORKING = 512  # px, shorter side at which sharpness, bars and evenness are measured: about what SD1.5 is trained at
TILE = 32  # px, side of the squares whose sharpness is compared
_FLAT = 20.0  # levels^2; a tile with less variance has nothing that could be sharp
_GRAIN = 45.0  # levels^2 of the second difference that noise may explain: 6 sigma^2 for a sigma of 2.7
_LIKE = 12.0  # levels by which a bar's pixels may differ from its colour: what JPEG leaves of a black bar
_STANDARD = 3688  # sum of the luminance table of the JPEG standard (T.81, table K.1), quality 50 by libjpeg's rule


def sharpness(gray: Tensor) -> float:
    """Variance of the second difference over the variance of the levels, per tile of 32 px; the 95th percentile of the tiles; the lower of both directions.

    It is the variance of the Laplacian (Pech-Pacheco 2000), parted into its two directions so that a camera's movement along one of them is seen. The ratio
    does not depend on contrast, so dark and foggy pictures are not taken for blurred ones; the percentile asks for one sharp place alone, so neither are
    portraits before a soft background. What the flattest tiles have of it is taken for noise and subtracted. nan where all is flat or too small.
    """
    return min(_sharpness(gray), _sharpness(gray.T))


def _sharpness(gray: Tensor) -> float:
    bend = 2 * gray[:, 1:-1] - gray[:, :-2] - gray[:, 2:]  # (H, W - 2)
    if min(bend.shape) < TILE:
        return float("nan")
    energy, contrast = _tiles(bend).var(-1), _tiles(gray[:, 1:-1]).var(-1)  # (tiles,)
    grain = min(float(energy.quantile(0.05)), _GRAIN)
    seen = contrast > _FLAT
    if not bool(seen.any()):
        return float("nan")
    return float(((energy - grain).clamp(min=0) / contrast)[seen].quantile(0.95))


def _tiles(x: Tensor) -> Tensor:
    """(tiles, TILE * TILE) of (H, W); what is left over at the right and at the bottom is left out."""
    return x.unfold(0, TILE, TILE).unfold(1, TILE, TILE).reshape(-1, TILE * TILE)


def spread(colour: Tensor) -> float:
    """Largest less smallest level of the picture's squares of 8 px (their means), in the channel where that is most: 0 for one colour, 255 at most.

    Means over squares leave noise out; the extremes, and not a deviation, keep a small moon on a black sky.
    """
    small = torch.nn.functional.avg_pool2d(colour[None], 8, ceil_mode=True, count_include_pad=False)[0].flatten(1)  # (3, squares)
    return float((small.amax(1) - small.amin(1)).max())


# ---- bars ------------------------------------------------------------------------------------------------------------


def bars(colour: Tensor) -> tuple[int, int, int, int]:
    """Even bars at the edges as pixels from the left, top, right and bottom; 0 where there is none.

    A bar is made of rows of one colour (99 % of the pixels within 12 levels of the outermost row's median). Even edges are common in pictures too: a night sky,
    a studio's white. What makes a bar is that it ends on a straight line: where the first two rows behind it differ in half of their pixels. Bars on opposite
    sides of one thickness and colour, the letterbox, are believed at a fifth, since the scene beside a bar may be dark itself; and where one of them is sure,
    the other is as thick, even if the scene goes on in its colour.
    """
    left, top, right, bottom = 0, 0, 0, 0
    for _ in range(2):  # a bar above hides how the bars at the sides end, and the other way round
        inner = colour[:, :, left : colour.shape[2] - right]
        top, bottom = _pair(inner)
        inner = colour[:, top : colour.shape[1] - bottom]
        left, right = _pair(inner.transpose(1, 2))
        if not left + right:
            break
    return left, top, right, bottom


def _pair(colour: Tensor) -> tuple[int, int]:
    """Thickness of the bars above and below."""
    (above, one, hue), (below, other, hue_below) = _bar(colour), _bar(colour.flip(1))
    height = colour.shape[1]
    if above + below >= height:  # one colour throughout: no bar, but a picture of nothing
        return 0, 0
    near, thin = max(2, height // 100), max(1, height // 128)
    one, other = one * (above >= thin), other * (below >= thin)
    if float((hue - hue_below).abs().max()) > _LIKE:
        return above * (one >= 0.5), below * (other >= 0.5)
    if one >= 0.5 > other and below >= above - near:  # the scene goes on in the bar's colour: it is as thick as its fellow
        return above, above if below > above + near else below
    if other >= 0.5 > one and above >= below - near:
        return below if above > below + near else above, below
    least = 0.2 if abs(above - below) <= near else 0.5
    return above * (one >= least), below * (other >= least)


def _bar(colour: Tensor) -> tuple[int, float, Tensor]:
    """Rows of one colour from the top, the part of the columns that differ within two rows behind them, and the colour."""
    hue = colour[:, 0].median(1).values  # (3,)
    rows, height = 0, colour.shape[1]
    for start in range(0, height, 32):  # most pictures have no bar, which the first rows tell
        away = _away(colour[:, start : start + 32], hue).mean(1) > 0.01  # (32,)
        rows += int((~away).long().cumprod(0).sum())
        if bool(away.any()):
            break
    if not 0 < rows < height:
        return rows, 0.0, hue
    last = colour[:, max(rows - 3, 0), None]  # (3, 1, W): a sky that grows lighter leaves its first colour at some row too, but without a step
    steps = ((colour[:, rows : rows + 2] - last).abs().amax(0) > _LIKE).float() * _away(colour[:, rows : rows + 2], hue)
    return rows, float(steps.amax(0).mean()), hue


def _away(rows: Tensor, hue: Tensor) -> Tensor:
    """(rows, W): 1 where a pixel is not of this colour."""
    return ((rows - hue[:, None, None]).abs().amax(0) > _LIKE).float()


# ---- traces of JPEG --------------------------------------------------------------------------------------------------


def blockiness(gray: Tensor) -> float:
    """How much larger the steps between pixels are on one line in eight than on the other seven, over the mean step and 1; both ways, the smaller of them.

    The step at x is |I(x+1) - I(x)|, 16 levels at most so that the picture's own edges weigh little, less the mean of its neighbours' (after Wang, Bovik and
    Evans 2000). Each of the eight phases is tried, since a crop moves the grid. About 0 without blocks. Measured at the picture's own size.
    """
    return min(_blocks(gray), _blocks(gray.T))


def _blocks(gray: Tensor) -> float:
    step = (gray[:, 1:] - gray[:, :-1]).abs().clamp(max=16)
    if step.shape[1] < 32:
        return 0.0
    excess = (step[:, 1:-1] - (step[:, :-2] + step[:, 2:]) / 2).mean(0)  # (W - 3,)
    whole = excess[: len(excess) // 8 * 8].view(-1, 8).mean(0)  # (8,) by phase
    top = int(whole.argmax())
    others = torch.cat([whole[:top], whole[top + 1 :]])
    return float((whole[top] - others.max()) / (step.mean() + 1))


def jpeg_quality(tables: dict[int, list[int]]) -> int:
    """libjpeg's quality (1 to 100) that makes tables like these, 0 where there are none: its scale is 200 - 2 q, below 50 it is 5000 / q."""
    if not tables:
        return 0
    scale = 100 * sum(tables[min(tables)]) / _STANDARD
    return round(min(100.0, max(1.0, (200 - scale) / 2 if scale <= 100 else 5000 / scale)))
