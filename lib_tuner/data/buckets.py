"""Sizes for pictures that are not square: kohya's rule (library/model_util.py:1316, train_util.py BucketManager), for any shortest and longest side and step.

Sizes are (width, height) in pixels. Every bucket has at most the area of the square, so one setting of the resolution bounds the memory.
"""

from __future__ import annotations

from math import sqrt

from ..settings import DataConfig

Size = tuple[int, int]


def bucket_sizes(cfg: DataConfig) -> list[Size]:
    """All buckets, sorted: the square, and for each width from the shortest to the longest side the tallest height within the area, in both orientations.

    The square of the resolution (rounded down to the step) is always one of them, also where the shortest side is set above or the longest below it.
    Raises ValueError where the resolution is shorter than one step.
    """
    square = _square(cfg)
    if not cfg.buckets:
        return [(square, square)]
    shortest, longest = _limits(cfg)
    found = {(square, square)}
    for width in range(shortest, longest + 1, cfg.bucket_step):
        height = min(longest, _floor(cfg.resolution**2 // width, cfg.bucket_step))
        if height >= shortest:
            found |= {(width, height), (height, width)}
    return sorted(found)


def bucket_for(size: Size, cfg: DataConfig) -> Size:
    """The bucket of a picture: that of the nearest aspect ratio, by |w/h - W/H| as in kohya; no two buckets have the same.

    With `upscale` off, a picture that would have to be enlarged gets its own size instead, rounded down to steps; only the shortest side still enlarges.
    """
    w, h = size
    W, H = min(bucket_sizes(cfg), key=lambda bucket: abs(w / h - bucket[0] / bucket[1]))
    if cfg.upscale or (w >= W and h >= H):
        return W, H
    return _own_size(size, cfg)


def _own_size(size: Size, cfg: DataConfig) -> Size:
    w, h = size
    if not cfg.buckets:
        side = min(w, h, _square(cfg))
        return (max(cfg.bucket_step, _floor(side, cfg.bucket_step)),) * 2
    shortest, longest = _limits(cfg)
    shrink = min(1.0, cfg.resolution / sqrt(w * h))  # a long thin picture may be small on one side and still have too much area
    sides = tuple(min(longest, max(shortest, _floor(int(side * shrink), cfg.bucket_step))) for side in size)
    most = _floor(cfg.resolution**2 // max(1, min(sides)), cfg.bucket_step)  # a side that the shortest one enlarged leaves less to the other
    return tuple(min(side, most) for side in sides)


def _limits(cfg: DataConfig) -> tuple[int, int]:
    """Shortest and longest side in whole steps, the shortest rounded up."""
    square, step = _square(cfg), cfg.bucket_step
    return min(square, -(-cfg.bucket_min // step) * step), max(square, _floor(cfg.bucket_max, step))


def _square(cfg: DataConfig) -> int:
    side = _floor(cfg.resolution, cfg.bucket_step)
    if not side:
        raise ValueError(f"data.resolution: {cfg.resolution} px is shorter than one bucket step ({cfg.bucket_step} px); set a smaller data.bucket_step.")
    return side


def _floor(side: int, step: int) -> int:
    return side // step * step
