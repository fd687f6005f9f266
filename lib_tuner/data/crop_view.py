"""Crops as a page draws and drags them, and frames as it gives them back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .crop import Frame, Target, clamped, enlargement, frame_size
from .crop_file import Crop, PictureCrops
from .crop_plan import CropConfig


def shown(record: PictureCrops, crop: Crop, cfg: CropConfig) -> dict[str, Any]:
    """A crop with what is needed to move it: `frame` are the sides of its largest frame in fractions of the picture, `times` by how much that is enlarged."""
    target = Target.parse(crop.target or cfg.size)
    size = target.size_for(record.size, cfg.enlarge)
    (w, h), (width, height) = record.size, frame_size(record.size, size)
    frame = clamped(crop.frame, record.size, size)
    return {
        "x": frame.x, "y": frame.y, "zoom": frame.zoom, "target": crop.target, "state": crop.state, "fixed": target.kind == "area",
        "frame": (min(1.0, width / w), min(1.0, height / h)), "size": size, "times": enlargement(record.size, size),
    }  # fmt: skip


def inside(record: PictureCrops, crop: Crop, cfg: CropConfig) -> Crop:
    """The crop with its frame pushed inside the picture."""
    size = Target.parse(crop.target or cfg.size).size_for(record.size, cfg.enlarge)
    return replace(crop, frame=clamped(crop.frame, record.size, size))


def frame_of(x: float, y: float, zoom: float) -> Frame:
    """A frame as a client gives it: a centre on the edge may be off by what floating point is. Raises ValueError for one that is none."""
    near = 1e-6
    return Frame(*(min(max(value, 0.0), 1.0) if -near < value < 1 + near else value for value in (x, y)), max(zoom, 1.0) if zoom > 1 - near else zoom)
