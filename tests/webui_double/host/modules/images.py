"""Pictures as files, and several in one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo


def save_image(image: Image.Image, path: str, basename: str, seed: int | None = None, prompt: str | None = None, extension: str = "png",
               info: str | None = None, grid: bool = False) -> str:
    """Writes the next file of the folder, with its settings where the format has room for them; returns its path."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    number = sum(file.suffix == f".{extension}" for file in folder.iterdir())
    parts = [basename, f"{number:05}", "" if grid or seed is None else str(seed)]
    target = folder / ("-".join(filter(None, parts)) + f".{extension}")
    notes = PngInfo()
    notes.add_text("parameters", info or "")
    image.save(target, **{"pnginfo": notes} if extension == "png" and info else {})
    return str(target)


def image_grid(imgs: Sequence[Image.Image]) -> Image.Image:
    """In rows, as near to a square as their number divides; at most as high as wide."""
    width, height = imgs[0].size
    rows = max(n for n in range(1, math.isqrt(len(imgs)) + 1) if len(imgs) % n == 0)
    columns = len(imgs) // rows
    sheet = Image.new("RGB", (columns * width, rows * height))
    for i, picture in enumerate(imgs):
        row, column = divmod(i, columns)
        sheet.paste(picture, (column * width, row * height))
    return sheet
