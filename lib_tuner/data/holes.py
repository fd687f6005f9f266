"""Random masks, by which an inpainting model learns to fill in: what is hidden of each example is a function of (seed, sample).

Axes: W, H the sides of a bucket in pixels. Rectangles and ellipses of random size and place are those of diffusers' train_dreambooth_inpaint.py; thick
lines and whole pictures were added when stable-diffusion-inpainting was made (LaMa's masks, and "in 25% mask everything").
"""

from __future__ import annotations

from itertools import pairwise
from random import Random

import torch
from torch import Tensor

from ..settings import InpaintConfig
from .keyed import rng

LEAST = 8  # px of a side: a latent pixel, so that a rectangle hides one at least
Box = tuple[int, int, int, int]  # left, top, width, height


class Holes:
    """The masks of a run: (H, W) of true where the picture is hidden."""

    def __init__(self, cfg: InpaintConfig, seed: int = 0):
        self.cfg, self.seed = cfg, seed

    def of_sample(self, index: int, digest: str, size: tuple[int, int], cached: bool) -> Tensor:
        """What sample `index` hides of a picture; `cached`: all, or one of the picture's few masks, else a new one."""
        random = rng(self.seed, "hole", index)
        if random.random() < self.cfg.whole:
            return whole(size)
        return self.variant(random.randrange(self.cfg.variants), digest, size) if cached else random_mask(size, random, self.cfg)

    def variant(self, number: int, digest: str, size: tuple[int, int]) -> Tensor:
        """One of the `cfg.variants` masks of a picture."""
        return random_mask(size, rng(self.seed, "mask", digest, number), self.cfg)

    def of_validation(self, digest: str, size: tuple[int, int]) -> Tensor:
        """What is always hidden of a held-out picture, whatever the run's seed."""
        random = rng("validation mask", digest)
        return whole(size) if random.random() < self.cfg.whole else random_mask(size, random, self.cfg)


def whole(size: tuple[int, int]) -> Tensor:
    """All of a picture (W, H)."""
    return torch.ones(size[1], size[0], dtype=torch.bool)


def random_mask(size: tuple[int, int], random: Random, cfg: InpaintConfig) -> Tensor:
    """(H, W) of one shape, inside a box whose sides are the chosen parts of the picture's."""
    shape = random.choice(sorted(SHAPES)) if cfg.shape == "mixed" else cfg.shape
    width, height = (min(side, max(LEAST, round(side * random.uniform(cfg.smallest, cfg.largest)))) for side in size)
    box = (random.randint(0, size[0] - width), random.randint(0, size[1] - height), width, height)
    x, y = torch.arange(size[0]) + 0.5, torch.arange(size[1])[:, None] + 0.5  # (W), (H, 1): the pixels' centres
    return SHAPES[shape](x, y, box, random)


def _rectangle(x: Tensor, y: Tensor, box: Box, random: Random) -> Tensor:
    left, top, width, height = box
    return (left < x) & (x < left + width) & (top < y) & (y < top + height)


def _ellipse(x: Tensor, y: Tensor, box: Box, random: Random) -> Tensor:
    """The one that touches the box's sides."""
    left, top, width, height = box
    return ((x - left) / width - 0.5).square() + ((y - top) / height - 0.5).square() <= 0.25


def _lines(x: Tensor, y: Tensor, box: Box, random: Random) -> Tensor:
    """A thick line through a few points of the box, cut off at its sides."""
    left, top, width, height = box
    points = [(left + width * random.random(), top + height * random.random()) for _ in range(random.randint(2, 6))]
    thick = max(LEAST / 2, min(width, height) * random.uniform(0.05, 0.2))  # from the line's middle
    near = [_distance(x, y, a, b) <= thick for a, b in pairwise(points)]
    return torch.stack(near).any(0) & _rectangle(x, y, box, random)


def _distance(x: Tensor, y: Tensor, a: tuple[float, float], b: tuple[float, float]) -> Tensor:
    """(H, W): how far each pixel is from the line between two points."""
    (ax, ay), dx, dy = a, b[0] - a[0], b[1] - a[1]
    along = (((x - ax) * dx + (y - ay) * dy) / max(dx * dx + dy * dy, 1e-12)).clamp(0, 1)
    return torch.hypot(x - ax - along * dx, y - ay - along * dy)


SHAPES = {"rectangles": _rectangle, "ellipses": _ellipse, "lines": _lines}
