"""What crops are called and how they are written: the settings of an export, and names of which none is there twice."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageColor

from ..config import opt
from ..disk import absolute
from . import mirrored
from .crop_plan import Piece
from .item import Item
from .file_names import Names
from .items import Problem, caption_alike, caption_endings, caption_files, folder_words
from .sources import read_text

FILTERS = {name: Image.Resampling[name.upper()] for name in ("lanczos", "bicubic", "hamming", "bilinear", "box", "nearest")}
PLACES = ("name", "index", "crop", "folder", "width", "height")
MIRRORED = "_mirrored"
_PLACE = re.compile(r"\{(\w*)\}")
_FORBIDDEN = re.compile(r'[<>:"/\\|?*{}\x00-\x1f]')  # in names of files, on one system or another
SUFFIX = {"png": ".png", "jpg": ".jpg", "webp": ".webp"}


@dataclass(frozen=True)
class ExportConfig:
    """How crops are written."""

    form: str = opt("png", "Format", "png loses nothing; jpg and webp are smaller.", choices=("png", "jpg", "webp"))
    quality: int = opt(95, "Quality", "Of jpg and webp.", min=1, max=100)
    filter: str = opt("lanczos", "Resampling", "How pixels are made smaller or larger.", choices=tuple(FILTERS))
    background: str = opt("", "Background", "Colour put under transparent parts, such as white or #808080; empty keeps them in png and webp, and is white in jpg.")
    name: str = opt("{name}", "Names", "Of the files: {name}, {index} (running number), {crop} (number within the picture), {folder}, {width} and {height} stand for their values.")
    flat: bool = opt(False, "All in one folder", "Off: subfolders are kept.")
    existing: str = opt("refuse", "If a name exists", "Say so and write nothing, or take the next free name.", choices=("refuse", "next"))
    captions: str = opt("txt,caption", "Caption extensions", "Endings of caption files that go along; each crop gets its copy.")
    masks: bool = opt(True, "Masks", "Crop mask files in the same way, as name.mask.png.")
    mirror: str = opt("off", "Mirrored copies", "Not of pictures whose caption says left or right (safe), or with both exchanged in the caption (swap).", choices=mirrored.WAYS)

    def check(self) -> None:
        for place in _PLACE.findall(self.name):
            if place not in PLACES:
                raise ValueError(f"name: {place!r} is no value in braces; choose from {', '.join(PLACES)}")
        bare = _PLACE.sub("", self.name)
        if not self.name.strip() or bare.startswith(".") or _FORBIDDEN.search(bare):
            raise ValueError(f"name: {self.name!r} makes no file name; write it without / \\ : * ? and a dot at the start")
        caption_endings(self.captions)
        if self.background:
            self.colour()

    def colour(self) -> tuple[int, int, int]:
        """What is put under transparent parts. Raises ValueError for no colour."""
        try:
            return ImageColor.getrgb(self.background or "white")[:3]
        except ValueError:
            raise ValueError(f"background: {self.background!r} is no colour; write a name such as white, or #808080") from None


_NO_TEXT = re.compile("[\ud800-\udfff]")  # bytes of a name on the disk that are no UTF-8: a ZIP cannot hold them


@dataclass(frozen=True)
class Output:
    """One picture that is going to be written: `stem` is its path in the target without ending; `captions` are endings and where the bytes come from."""

    piece: Piece
    stem: str
    captions: tuple[tuple[str, Path | None], ...] = ()  # None: the item's own text, out of a list
    mirrored: bool = False

    def names(self, cfg: ExportConfig) -> list[str]:
        """All files of it, the picture last."""
        mask = [f"{self.stem}.mask.png"] if cfg.masks and self.piece.item.mask else []
        return [*(self.stem + ending for ending, _ in self.captions), *mask, self.stem + SUFFIX[cfg.form]]


def named(pieces: Sequence[Piece], folder: str | Path, cfg: ExportConfig) -> tuple[list[Output], list[Problem]]:
    """The pieces with names in the target, and which get no mirrored copy. Two that would share one (a.png and a.jpg share a.txt) get numbers."""
    root, digits, taken = absolute(folder), len(str(len(pieces))), dict[str, int]()
    outputs, problems, names = [], [], Names()
    for index, piece in enumerate(pieces, 1):
        item, captions = piece.item, _captions(piece.item, cfg, names)
        stem = _free(_stem(piece, root, cfg, f"{index:0{digits}}"), taken)
        outputs.append(Output(piece, stem, captions))
        if cfg.mirror != "off":
            if why := mirrored.refusal(_words(item, captions), cfg.mirror):
                problems.append(Problem(item.path, why, "mirror"))
            else:
                outputs.append(Output(piece, _free(stem + MIRRORED, taken), captions, mirrored=True))
    return outputs, problems


def _stem(piece: Piece, root: Path, cfg: ExportConfig, index: str) -> str:
    path = piece.item.path
    values = dict(zip(PLACES, (path.stem, index, str(piece.number), folder_words(path), str(piece.size[0]), str(piece.size[1]))))
    name = _PLACE.sub(lambda found: values[found[1]], cfg.name)
    if piece.count > 1 and not {"index", "crop"} & set(_PLACE.findall(cfg.name)):
        name += f"_{piece.number}"
    return _NO_TEXT.sub("_", name if cfg.flat else (path.parent.relative_to(root) / name).as_posix())


def _free(stem: str, taken: dict[str, int]) -> str:
    """The stem, or with the first number that is not taken; capitals make no difference to some disks. `taken` has the last number of each stem, from which on is looked."""
    found, number = stem, taken.get(stem.casefold(), 1)
    while found.casefold() in taken:
        number += 1
        found = f"{stem}_{number}"
    taken[stem.casefold()] = number
    taken.setdefault(found.casefold(), 1)
    return found


def _captions(item: Item, cfg: ExportConfig, names: Names) -> tuple[tuple[str, Path | None], ...]:
    if item.caption_source == "list":
        return ((".txt", None),)
    files = caption_files(item.path, cfg.captions)
    there = tuple((ending, path) for ending, path in zip(caption_endings(cfg.captions), files) if os.path.isfile(path))  # `Path.is_file` raises for a name that is too long
    meant = None if there else caption_alike(item.path, files, names)
    return ((meant.suffix.lower(), meant),) if meant else there


def _words(item: Item, captions: Sequence[tuple[str, Path | None]]) -> str:
    """All that goes along with a crop of it, since any of its files may name a side; what cannot be read is said when it is written."""
    return "\n".join([item.caption, *(read_text(path, lambda *said: None) for _, path in captions if path)])
