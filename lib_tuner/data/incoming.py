"""A picture from elsewhere becomes one to learn from: a file with its caption, beside those that are there."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from ..disk import atomic

_SETTINGS = re.compile(r"^(Negative prompt:|Steps: )", re.MULTILINE)  # where the prompt ends in what the WebUI writes into a picture


def save_with_caption(picture: Image.Image, folder: Path) -> Path:
    """Writes `picture` as the next free `taken-NNNN.png` of the folder, and the prompt that it was drawn from into the .txt beside it.

    Raises OSError where the folder takes no file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while any((folder / f"taken-{number:04d}{ending}").exists() for ending in (".png", ".txt")):
        number += 1
    path = folder / f"taken-{number:04d}.png"
    with atomic(path) as temporary:
        picture.save(temporary, "PNG")
    caption = prompt_of(picture)
    if caption:
        with atomic(path.with_suffix(".txt")) as temporary:
            temporary.write_text(caption, encoding="utf-8")
    return path


def prompt_of(picture: Image.Image) -> str:
    """The prompt in a picture of the WebUI (its PNG text `parameters`), without what loads other networks; empty where there is none."""
    text = picture.info.get("parameters")
    if not isinstance(text, str):
        return ""
    found = _SETTINGS.search(text)
    prompt = text[: found.start()] if found else text
    return re.sub(r"\s+", " ", re.sub(r"<\w+:[^<>]*>", "", prompt)).strip(" ,")
