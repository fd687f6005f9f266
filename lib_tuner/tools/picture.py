"""A bar for each block of the UNet, and one for the text encoder, as a PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw

from ..disk import atomic

COLUMN, BAR, HEIGHT, LEFT, TOP, BOTTOM = 40, 28, 260, 70, 40, 30  # px
COLORS = {"BASE": "#8a5fbf", "IN": "#3b7dd8", "M": "#d8893b", "OUT": "#3ba37a"}
BROKEN = "#c0202a"


def draw_blocks(path: Path, blocks: Mapping[str, float], title: str) -> Path:
    """Draws norms by block names; the tallest bar is the largest of them, four lines say how tall. What is no number is a red bar up to the top."""
    width = LEFT + COLUMN * len(blocks) + 10
    image = Image.new("RGB", (width, TOP + HEIGHT + BOTTOM), "white")
    draw = ImageDraw.Draw(image)
    draw.text((LEFT, 12), title.encode("ascii", "replace").decode(), "black")  # the font that comes with Pillow has no more
    top = max((norm for norm in blocks.values() if math.isfinite(norm)), default=0.0) or 1.0
    for i in range(5):
        y = TOP + HEIGHT - HEIGHT * i // 4
        draw.line((LEFT, y, width - 10, y), "#dddddd")
        draw.text((6, y - 6), f"{top * i / 4:.3g}", "#555555")
    for i, (name, norm) in enumerate(blocks.items()):
        x = LEFT + COLUMN * i + (COLUMN - BAR) // 2
        height = round(HEIGHT * norm / top) if math.isfinite(norm) else HEIGHT
        if height:
            draw.rectangle((x, TOP + HEIGHT - height, x + BAR - 1, TOP + HEIGHT - 1), COLORS[name.rstrip("0123456789")] if math.isfinite(norm) else BROKEN)
        if not math.isfinite(norm):
            draw.text((x, TOP + HEIGHT // 2), f"{norm:g}", "white")
        draw.text((x, TOP + HEIGHT + 8), name, "black")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        image.save(temporary, format="PNG")
    return path
