"""What one picture looks like in numbers, from one decoding: all that the audit of pictures and the search for near duplicates need."""

from __future__ import annotations

import io
import warnings
from dataclasses import asdict, dataclass, fields
from typing import Any

from PIL import Image

from . import duplicates, measures, pictures, sources

_SMALL = 4_000_000  # pixels; a larger JPEG is decoded at a fraction of its size, and its blocks vanish when it is made smaller for training


@dataclass(frozen=True)
class Look:
    """A picture in numbers. `size` is upright, `bars` are px of it from the left, top, right and bottom; nan is what cannot be measured; `trouble` says why it
    cannot be read, and nothing else is known then."""

    digest: str
    size: tuple[int, int] = (0, 0)
    mode: str = ""  # as Pillow opens it, such as RGB, CMYK, P, I;16
    orientation: int = 1  # EXIF
    frames: int = 1
    alpha: int = 255  # the most transparent pixel's
    bars: tuple[int, int, int, int] = (0, 0, 0, 0)
    sharpness: float = float("nan")
    spread: float = 255.0
    blocks: float = 0.0
    quality: int = 0  # of a JPEG's tables; 0: no JPEG
    hash: int = 0
    mirrored: int = 0  # the hash of the mirror image
    thumb: str = ""  # 8 x 8 RGB as hexadecimal digits
    trouble: str = ""

    def to_json(self) -> dict[str, Any]:
        """The look as JSON takes it, to be kept by its digest."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Look | None:
        """What `to_json` wrote; None where another version did, so that the picture is to be looked at again."""
        if row.keys() != {f.name for f in fields(cls)}:
            return None
        return cls(**{**row, "size": tuple(row["size"]), "bars": tuple(row["bars"])})


def look(data: bytes) -> Look:
    """Looks at a picture file's bytes once; never raises for what they hold."""
    digest = sources.digest(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's doubts about EXIF, and its bombs, for which there is a limit of our own
        try:
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > pictures.LARGEST or min(image.size) < pictures.SMALLEST:
                return Look(digest, trouble=_reason(data, Image.DecompressionBombError()))
            return _measured(digest, image)
        except (*pictures.BROKEN, MemoryError) as error:
            return Look(digest, trouble=_reason(data, error))


def _reason(data: bytes, error: BaseException) -> str:
    """What a scan says of such a file; it decodes once more, which only broken files pay for."""
    try:
        pictures.inspect(data)
    except ValueError as said:
        return str(said)
    return f"is no picture that Pillow can read ({' '.join(str(error).split())})"[:160]


def _measured(digest: str, image: Image.Image) -> Look:
    mode, full = image.mode, image.size
    quality = measures.jpeg_quality(getattr(image, "quantization", None) or {})
    moves = image.format in ("GIF", "PNG", "WEBP") and getattr(image, "is_animated", False)
    frames = image.n_frames if moves else 1
    if full[0] * full[1] > _SMALL:
        image.draft("RGB", _working(full))
    image.load()
    if pictures.turns_itself(image):
        full = image.size
    whole, orientation = image.size == full, pictures.orientation_of(image)
    rgb, alpha = _on_white(image)
    if orientation in pictures.UPRIGHT:
        rgb = rgb.transpose(pictures.UPRIGHT[orientation])
    size = (full[1], full[0]) if orientation >= 5 else full
    blocks = measures.blockiness(_gray(_middle(rgb))) if whole else 0.0
    goal = _working(size)
    small = rgb if rgb.size == goal else rgb.resize(goal, Image.Resampling.BICUBIC, reducing_gap=2.0)
    colour = (pictures.to_pixels(small) + 1) * 127.5  # (3, H, W)
    across, down = size[0] / goal[0], size[1] / goal[1]
    left, top, right, bottom = edges = measures.bars(colour)
    bars = tuple(round(part * scale) for part, scale in zip(edges, (across, down, across, down)))
    scene = small.crop((left, top, goal[0] - right, goal[1] - bottom))  # a letterboxed copy is a copy
    sharp, spread = measures.sharpness(_gray(small)), measures.spread(colour)
    return Look(digest, size, mode, orientation, frames, alpha, bars, sharp, spread, blocks, quality, *duplicates.fingerprint(scene))


def _on_white(image: Image.Image) -> tuple[Image.Image, int]:
    """The picture in sRGB before white, as it is trained on without masks, and its most transparent pixel's alpha."""
    rgb = pictures.to_srgb(image)
    if not pictures.carries_alpha(image):
        return rgb, 255
    alpha = pictures.alpha_of(image)
    return Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha), alpha.getextrema()[0]


def _working(size: tuple[int, int]) -> tuple[int, int]:
    """The size at which pictures are measured: shorter side WORKING px at most, longer side four times that at most."""
    scale = min(1.0, measures.WORKING / min(size), 4 * measures.WORKING / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _middle(image: Image.Image, side: int = 1024) -> Image.Image:
    """The middle of a picture at its own size: blocks are everywhere or nowhere."""
    left, top = max(0, (image.width - side) // 2), max(0, (image.height - side) // 2)
    return image.crop((left, top, min(image.width, left + side), min(image.height, top + side)))


def _gray(image: Image.Image) -> Any:
    return pictures.to_pixels(image.convert("L"))[0] * 255
