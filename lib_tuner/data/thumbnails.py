"""Small pictures for the grid, made once: they lie in the folder's side folder, under a name that changes when the picture does."""

from __future__ import annotations

import hashlib
import io
from contextlib import suppress
from pathlib import Path

from PIL import Image

from ..disk import atomic
from . import pictures

SIDES = (128, 256, 512, 1024)  # px of the longer side; a wish is rounded up, so that the cache holds few sizes
FOLDER = "thumbs"
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"


def media_type(data: bytes) -> str:
    """What a browser is told of a thumbnail."""
    return "image/jpeg" if data.startswith(_JPEG) else "image/png"


def thumbnail(path: Path, side: int, cache: Path | None = None) -> bytes:
    """A picture as JPEG, or as PNG where parts of it are transparent: upright, in sRGB, its longer side at most `side` px, rounded up to one of SIDES.

    `cache` is the folder to keep it in; one that cannot be written is done without. Raises ValueError for what is no picture, OSError for what cannot be read.
    """
    side = next((known for known in SIDES if known >= side), SIDES[-1])
    kept = cache and cache / FOLDER / _name(path, side)
    with suppress(OSError):  # not there yet, or the side folder's own trouble: it is made anew
        if kept:
            return kept.read_bytes()
    data = _encoded(pictures.small(path.read_bytes(), side))
    with suppress(OSError):  # a full or read-only disk costs time, not the picture
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic(kept, durable=False) as part:
                part.write_bytes(data)
    return data


def _name(path: Path, side: int) -> str:
    stat = path.stat()
    code = hashlib.sha256(f"{path.name}|{path.parent.name}|{stat.st_size}|{stat.st_mtime_ns}|{side}".encode("utf-8", "surrogateescape")).hexdigest()
    return f"{code[:2]}/{code[2:24]}"


def _encoded(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    if picture.mode == "RGBA":
        picture.save(content, "PNG", compress_level=1)
    else:
        picture.save(content, "JPEG", quality=85)
    return content.getvalue()
