"""The picture that carries an embedding, as the WebUI writes and reads it.

The same JSON lies in it twice: as base64 in the PNG text chunk `sd-ti-embedding`, and compressed in the pixels beside the picture, which outlive
a site that strips text chunks, but no scaling and no JPEG. Format: AUTOMATIC1111 v1.9.4, modules/textual_inversion/image_embedding.py.

    columns, left to right:   low halves of the bytes (k) | 1 black | picture (w) | 1 black | high halves (k)

Pixels are (h, columns, 3) uint8. Only a pixel's low 4 bits hold data; the high ones are dots shaded after the vector, for the eye.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

CHUNK = "sd-ti-embedding"
_LARGEST = 1 << 26  # bytes of JSON; 75 vectors of 768 numbers are 1.2 MB


def to_text(data: dict[str, Any]) -> bytes:
    """The content of the text chunk; tensors may lie anywhere in `data`."""
    return base64.b64encode(_to_json(data).encode())


def from_text(text: str | bytes) -> Any:
    """The inverse of `to_text`; tensors come back as float64. Raises ValueError where the text is damaged."""
    return _from_json(base64.b64decode(text))


def insert(picture: Image.Image, data: dict[str, Any]) -> Image.Image:
    """The picture with `data` in pixels on both sides; `data["string_to_param"]` holds the vectors (n, C).

    Raises ValueError where the WebUI could not read it back: chance makes that possible with few rows, where a column of zeros passes for a border.
    """
    packed = zlib.compress(_to_json(data).encode(), level=9)
    whole = _compose(picture.convert("RGB"), packed, _shades(data))
    if _unpack(whole) != zlib.decompress(packed):
        raise ValueError(f"A picture of {picture.width}x{picture.height} pixels cannot hold this embedding; use another one, at least 64 pixels high.")
    return whole


def extract(picture: Image.Image) -> Any:
    """What `insert` put into the pixels, or None where there is nothing (left)."""
    text = _unpack(picture)
    return None if text is None else _from_json(text)


# ---- JSON


def _to_json(data: dict[str, Any]) -> str:
    return json.dumps(data, default=_tensor_to_json)


def _tensor_to_json(value: Any) -> dict[str, list]:
    if isinstance(value, Tensor):
        return {"TORCHTENSOR": value.detach().cpu().tolist()}
    raise TypeError(f"{type(value).__name__} cannot be stored in a picture")


def _from_json(text: bytes) -> Any:
    return json.loads(text, object_hook=lambda found: torch.tensor(found["TORCHTENSOR"], dtype=torch.float64) if "TORCHTENSOR" in found else found)


# ---- pixels


def _compose(picture: Image.Image, packed: bytes, shades: list[int]) -> Image.Image:
    numbers = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    low, high = _block(numbers & 0x0F, picture.height, shades), _block(numbers >> 4, picture.height, shades[::-1])
    whole = Image.new("RGB", (picture.width + low.width + high.width + 2, picture.height))
    whole.paste(low, (0, 0))
    whole.paste(picture, (low.width + 1, 0))
    whole.paste(high, (low.width + picture.width + 2, 0))
    return whole


def _block(halves: Tensor, h: int, shades: Sequence[int]) -> Image.Image:
    """Half bytes as an image h pixels high; they start again where they end, since zlib stops by itself at the end of the first copy."""
    size = len(halves) + h - len(halves) % h
    size += 3 * h - size % (3 * h)
    pixels = halves.repeat(-(-size // len(halves)))[:size].view(h, -1, 3)  # (h, k, 3)
    pixels = pixels ^ (_pixels(_dots(pixels.shape[1], h, shades)) & 0xF0) ^ _noise(pixels.shape)
    return Image.frombytes("RGB", (pixels.shape[1], h), bytes(pixels.flatten().tolist()))


def _noise(shape: Sequence[int]) -> Tensor:
    """The low 4 bits of the fixed pseudo-random sequence that keeps the data from looking like stripes."""
    return (_random(math.prod(shape)) & 0x0F).to(torch.uint8).view(*shape)


def _random(n: int) -> Tensor:
    """seed <- (1664525 seed + 1013904223) mod 2^32 from 0, of each seed the rest by 255; (n,) int64.

    `a` and `c` jump as many steps as there are seeds, so each turn doubles them; `a` is kept in 32 bits with its sign, and no product overflows.
    """
    seeds, a, c = torch.tensor([1013904223]), 1664525, 1013904223
    while len(seeds) < n:
        seeds = torch.cat((seeds, (seeds * a + c) % 2**32))
        a, c = (a * a + 2**31) % 2**32 - 2**31, (a * c + c) % 2**32
    return seeds[:n] % 255


def _shades(data: dict[str, Any]) -> list[int]:
    """The first vector's sizes as greys 0 to 255."""
    vector = [abs(value) for value in next(iter(data["string_to_param"].values()))[0, :1024].tolist()]
    return [int(value / (max(vector) or 1.0) * 255) for value in vector]


def _dots(w: int, h: int, shades: Sequence[int]) -> Image.Image:
    """Rows of dots 6 pixels wide, every other row moved by half a place."""
    image = Image.new("RGB", (w, h))
    draw = ImageDraw.Draw(image)
    places = [(x + (4 if row % 2 == 0 else 0), y) for x in range(-6, w, 8) for row, y in enumerate(range(-6, h, 8))]
    for i, (x, y) in enumerate(places):
        draw.ellipse((x, y, x + 6, y + 6), fill=(shades[i % len(shades)],) * 3)
    return image


def _unpack(picture: Image.Image) -> bytes | None:
    pixels = _without_black_border(_pixels(picture.convert("RGB"))) & 0x0F
    black = (pixels.sum((0, 2)) == 0).nonzero().flatten().tolist()  # columns
    if len(black) < 2:
        return None
    low, high = pixels[:, : black[0]], pixels[:, black[-1] + 1 :]
    if low.shape != high.shape or low.numel() < 2 or not _is_packed(low, high):
        return None
    noise = _noise(low.shape)
    packed, reader = ((high ^ noise) << 4 | (low ^ noise)).flatten().tolist(), zlib.decompressobj()
    try:
        text = reader.decompress(bytes(packed), _LARGEST)
    except zlib.error:
        return None
    return text if reader.eof else None


def _is_packed(low: Tensor, high: Tensor) -> bool:
    """Whether the first two bytes are zlib's (RFC 1950): tells ordinary pictures with black columns apart before the noise is computed."""
    noise = _noise((2,))
    first, second = ((high.flatten()[:2] ^ noise) << 4 | (low.flatten()[:2] ^ noise)).tolist()
    return first & 0x0F == 8 and (first * 256 + second) % 31 == 0


def _without_black_border(pixels: Tensor) -> Tensor:
    """From the first to the last row and column that has a pixel with no channel at 0."""
    bright = (pixels > 0).all(2)
    rows, columns = (bright.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if rows else pixels[:0]


def _pixels(image: Image.Image) -> Tensor:
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
