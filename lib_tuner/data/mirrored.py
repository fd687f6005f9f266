"""Captions of pictures that are mirrored: which of them name a side, and the same with the sides exchanged."""

from __future__ import annotations

import re
from dataclasses import replace

from .captions import parse

WAYS = ("off", "safe", "swap")
NAMED = re.compile(r"(?<![a-z])(left|right|text)(?![a-z])", re.IGNORECASE)  # what `data.flip = safe` leaves alone: `looking_left` too, `upright` not
_SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)
_WRITING = re.compile(r"(?<![a-z])text(?![a-z])", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left"}


def refusal(caption: str, way: str) -> str:
    """Why a picture with this caption gets no mirrored copy; empty where it does. `safe` refuses where a side is named, `swap` exchanges them."""
    if _WRITING.search(caption):
        return "has no mirrored copy: its caption names text, which would be mirrored too"
    return "has no mirrored copy: its caption names left or right" if way == "safe" and _SIDE.search(caption) else ""


def swapped(text: str) -> str:
    """Left for right and right for left, capitals as they were."""
    def other(found: re.Match[str]) -> str:
        word = _OTHER[found[0].lower()]
        return word.upper() if found[0].isupper() else word.capitalize() if found[0][0].isupper() else word

    return _SIDE.sub(other, text)


def swapped_bytes(data: bytes) -> bytes:
    """A caption file with the sides exchanged, in its own encoding, all else byte for byte."""
    caption = parse(data)
    return replace(caption, lines=tuple(replace(line, text=swapped(line.text)) for line in caption.lines)).to_bytes()
